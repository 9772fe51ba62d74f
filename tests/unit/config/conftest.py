"""Configurations that tests begin with."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

MINIMAL = """\
[authentication]
anonymous = true

[realm.core]
core = "none"

[tls-profile.main]
certificate = "server.pem"
key = "server.key"

[tscf-port.v4]
address = "0.0.0.0"
tls-profile = "main"

[tscf-address-pool.office]
ranges = ["10.64.1.0/24"]

[tscf-interface.access]
realm = "core"
ports = ["v4"]
address-pools = ["office"]
"""


@pytest.fixture
def minimal() -> str:
    """The shortest configuration that serves anybody."""
    return MINIMAL


@pytest.fixture
def example() -> str:
    """The complete example that people are pointed to."""
    return (ROOT / "examples" / "server.toml").read_text()


@pytest.fixture
def root() -> Path:
    """The repository."""
    return ROOT
