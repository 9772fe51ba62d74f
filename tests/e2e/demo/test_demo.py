"""The demonstration, shortened: what it claims is what it shows, in a lab and without one."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from opentsm.lab.demo import page, show
from opentsm.lab.demo.measure import Numbers
from opentsm.lab.demo.story import Played, Result
from opentsm.lab.hearing import why_no_pesq
from opentsm.types import Path as TunnelPath

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.timeout(240)

FACTOR = 0.5
"""Of the usual length: 36 s of speech."""


class Listener:
    """Keeps what was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def status(self, line: str) -> None:
        """Only for people."""


def spans(played: Played, title: str) -> list[Numbers]:
    (at,) = (number for number, span in enumerate(played.spans) if span.title == title)
    return [direction.spans[at] for direction in played.directions]


def sounds(text: str) -> list[bytes]:
    return [base64.b64decode(data) for data in re.findall(r'src="data:audio/wav;base64,([^"]+)"', text)]


@pytest.mark.netns
def test_the_demonstration_shows_what_the_ddt_is_for(tmp_path: Path) -> None:
    report, listener = tmp_path / "report.html", Listener()
    result = show.run(listener, report, factor=FACTOR)
    check_calls(result)
    on_stream, switched, blocked, protected = result.parts
    check_stream(on_stream)
    check_switch(switched, on_stream)
    check_block(blocked)
    check_redundancy(protected, switched)
    check_report(report, result)
    assert any("both phones are registered" in line for line in listener.lines)


def check_calls(result: Result) -> None:
    """Four calls took place, and the server knows of each."""
    assert [played.part.letter for played in result.parts] == ["a", "b", "c", "d"]
    assert len(result.records) == 4
    for record in result.records:
        assert (record["caller"], record["callee"]) == ("alice@example.test", "bob@example.test")
        assert (record["reason"], record["ended_by"]) == ("hung-up", "caller")


def check_stream(played: Played) -> None:
    """(a): nothing by UDP; nothing is lost, but much comes late."""
    assert all(set(direction.recording) != {0} for direction in played.directions)
    assert set(played.wire.packets) == {"TCP/443"}
    for numbers in spans(played, "on the stream"):
        assert numbers.by_path == {TunnelPath.STREAM: numbers.packets, TunnelPath.DATAGRAM: 0}
        assert numbers.lost == 0
        assert numbers.late > 0


def check_switch(played: Played, on_stream: Played) -> None:
    """(b): after the switch most media goes by the DDT, and sounds better than (a)."""
    assert set(played.wire.packets) == {"TCP/443", "UDP/443"}
    before, after = spans(played, "before the switch"), spans(played, "after the switch")
    forced = spans(on_stream, "on the stream")
    for numbers in before:
        assert numbers.by_path[TunnelPath.DATAGRAM] == 0
    # The downlink moves when the server learns of it, a moment after the uplink; and while a side is in
    # doubt about UDP (on a busy machine 80 ms of silence come by themselves), the copy on the stream may be
    # the first.
    for numbers in after:
        assert numbers.by_path[TunnelPath.DATAGRAM] > numbers.packets / 2
    assert page.worst_mos(after) > page.worst_mos(forced)
    if why_no_pesq() is None:
        mean = [sum(one.pesq or 0.0 for one in both) / 2 for both in (after, forced)]
        assert mean[0] > mean[1]


def check_block(played: Played) -> None:
    """(c): UDP dies without a word; the call goes on, on the stream, and comes back."""
    for numbers in spans(played, "UDP blocked"):
        assert numbers.by_path[TunnelPath.STREAM] > numbers.by_path[TunnelPath.DATAGRAM]
        assert numbers.missed_percent < 50
    for direction in played.directions:
        assert TunnelPath.DATAGRAM in {packet.path for packet in direction.packets[-100:]}


def check_redundancy(protected: Played, plain: Played) -> None:
    """(d): datagrams carry more than their own frame, and fewer frames are lost than without."""
    with_it, without = spans(protected, "with redundancy"), spans(plain, "after the switch")
    assert sum(one.lost for one in with_it) / sum(one.packets for one in with_it) < sum(
        one.lost for one in without
    ) / sum(one.packets for one in without)
    size = [call.wire.octets["UDP/443"] / call.wire.packets["UDP/443"] for call in (protected, plain)]
    assert size[0] > size[1]


def check_report(report: Path, result: Result) -> None:
    text = report.read_text()
    assert text.count("<svg") == 5
    assert len(sounds(text)) == 9
    assert all(len(sound) > 8000 * 5 for sound in sounds(text))
    for row in page.rows(result):
        assert "".join(f"<td>{cell}</td>" for cell in row) in text
    assert len(text) < 4_000_000


def test_without_rights_it_plays_on_loopback_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    command = [sys.executable, "-m", "opentsm.cli.main", "lab", "demo", "--loopback"]
    done = subprocess.run(
        [*command, "--factor", "0.3", "--report", str(report)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stderr
    assert "Left out:" in done.stdout
    assert "no NAT and no firewall" in done.stdout
    measured = re.search(r"\(b\) +after the switch +bob to alice +\d+ +(\d+) +(\S+)", done.stdout)
    assert measured is not None
    assert (int(measured[1]) > 50, float(measured[2])) == (True, 0.0)  # by the DDT, and nothing lost
    assert "A reduced demonstration" in report.read_text()
    assert len(sounds(report.read_text())) == 5
