from __future__ import annotations

from typing import Any

import pytest

from opentsm.errors import ConfigError
from opentsm.sbc.settings import SbcSettings


def test_the_defaults_are_usable() -> None:
    settings = SbcSettings(domain="example.org", address="10.64.0.1", address6="fd00::1")
    assert settings.addresses == ("10.64.0.1", "fd00::1")
    assert settings.ring_timeout > 180


@pytest.mark.parametrize(
    "wrong",
    [
        {"domain": ""},
        {"domain": "a b"},
        {"address": "sbc.example.org"},
        {"address6": "10.64.0.2"},
        {"port": 0},
        {"media_ports": (20000, 20002)},
        {"media_ports": (5000, 6000)},
        {"media_ports": (30000, 20000)},
        {"digest_algorithms": ("SHA-1",)},
        {"digest_algorithms": ()},
        {"min_expires": 900},
    ],
)
def test_what_cannot_work_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        SbcSettings(**{"domain": "example.org", "address": "10.64.0.1", **wrong})
