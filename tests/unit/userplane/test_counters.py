"""docs/counters.md explains every counter there is, and none that there is not."""

from __future__ import annotations

import re
from pathlib import Path

from opentsm.server.counters import MALFORMED, Count
from opentsm.userplane._core import UserPlane

ROOT = Path(__file__).parents[3]


def documented() -> dict[str, str]:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", (ROOT / "docs/counters.md").read_text(), re.MULTILINE)
    assert len(rows) == len(dict(rows)), "a counter stands twice"
    return dict(rows)


def malformed_reasons() -> set[str]:
    """The decoder's reasons, as its sources have them."""
    texts = [path.read_text() for path in (ROOT / "src/opentsm/wire").glob("*.py")]
    found = {reason for text in texts for reason in re.findall(r'RemoteProtocolError\(\s*"([a-z-]+)"', text)}
    assert found
    return {MALFORMED + reason.replace("-", "_") for reason in found}


def test_every_counter_is_explained() -> None:
    plane = UserPlane(workers=1)
    counted = set(plane.counters())
    plane.shutdown(flush_ms=0)
    assert set(documented()) == counted | set(Count) | malformed_reasons()


def test_every_explanation_is_a_sentence() -> None:
    for name, sentence in documented().items():
        assert sentence[0].isupper() or sentence.startswith("`"), name
        assert sentence.endswith("."), name
