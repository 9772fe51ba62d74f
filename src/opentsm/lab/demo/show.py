"""A whole demonstration: the best stage there is, the calls, the page."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from opentsm.lab.demo.page import page
from opentsm.lab.demo.stage import LOSS, ROUND_TRIP, Stage, lab_stage, loopback_stage
from opentsm.lab.demo.story import Result, Teller, play, script


def run(
    teller: Teller, report: Path, *, factor: float = 1.0, seed: int = 7, obstacle: str | None = None
) -> Result:
    """Make the stage, play, write the report.

    Args:
        teller: told what happens.
        report: the HTML file to write.
        factor: how long the calls last beside the usual.
        seed: of the network's losses.
        obstacle: why no lab can be made; then it plays on loopback.

    Raises:
        PlatformError: no lab can be made here; the message says what to do.
    """
    with ExitStack() as stack:
        if obstacle is None:
            teller.status("making the network ...")
            stage: Stage = stack.enter_context(lab_stage(seed))
            teller.say(
                "the network is up: alice - NAT, firewall (port 443 only) - WAN - server - firewall - bob"
            )
            trip, lost = f"{1000 * ROUND_TRIP:.0f} ms", f"{100 * LOSS:.0f} %"
            teller.say(f"alice's WAN: {trip} round trip, {lost} of packets lost each way")
        else:
            teller.say(f"no network can be made here: {obstacle}")
            stage = stack.enter_context(loopback_stage())
            teller.say("a reduced demonstration, on loopback. Left out:")
            for line in stage.left_out:
                teller.say(f"  - {line}")
        teller.say(f"the TSM server with its SBC listens on {stage.url}")
        result = play(stage, script(factor, network=obstacle is None), teller)
    report.write_text(page(result, seed))
    return result
