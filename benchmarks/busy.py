"""Forwarded packets beside an idle and a busy control plane of the same server process, in turn."""

from __future__ import annotations

import signal
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks.figures import Figures, Spread, table, verdict
from benchmarks.parts import Part, Settings, Shown
from benchmarks.rig import SERVER, Load, Rig, running
from benchmarks.variants import OpenTsmDtls, make_keys
from opentsm.errors import PlatformError

BUSY_RATE: Final = 1_000
"""The forwarded packets: twenty calls, and enough of them for a p99."""

CHURN_RATE: Final = 20
"""Tunnel pairs per second that are set up and torn down beside it."""

MOST_P99_MOVE_US: Final = 1_000.0
ROW: Final = "1,000/s up"
QUANTILES: Final = ("p50", "p90", "p99", "max")


def estimate(settings: Settings) -> float:
    """Seconds."""
    return 5 + settings.all_rounds * 2 * (settings.seconds + 1.5)


def run(settings: Settings, out: Figures) -> None:
    """Pairs of readings, idle and busy."""
    load = Load("up", BUSY_RATE, settings.seconds, timed=True)
    with tempfile.TemporaryDirectory(prefix="opentsm-bench-") as name, Rig(settings.tool) as rig:
        folder = Path(name)
        make_keys(folder)
        variant = OpenTsmDtls(rig, folder)
        try:
            variant.set_up()
            for number in settings.numbers():
                settings.say_round(number, "idle and busy control plane")
                pair = _pair(rig, variant, load)
                if number:
                    for series, delays in pair.items():
                        for quantile in QUANTILES:
                            out.add(f"delay {quantile}", ROW, series, delays[quantile])
        finally:
            variant.take_down()


def _pair(rig: Rig, variant: OpenTsmDtls, load: Load) -> dict[str, dict[str, float]]:
    ends, found = variant.ends(load), {}
    found["idle"] = rig.measure(load, ends, variant.server_pids).delay_us
    churn = rig.start_module(
        *(rig.client, "benchmarks.churn", "--server", SERVER, "--ca", str(variant.folder / "ca.pem")),
        *("--rate", str(CHURN_RATE)),
    )
    with running(churn):
        variant.signal_server(signal.SIGUSR1)
        time.sleep(0.3)
        found["busy"] = rig.measure(load, ends, variant.server_pids).delay_us
        variant.signal_server(signal.SIGUSR2)
        if churn.poll() is not None:
            raise PlatformError("the clients that come and go have failed; see above")
    return {name: delays for name, delays in found.items() if delays is not None}


def show(figures: Figures) -> Shown:
    """Delays, and by how much the p99 moves."""
    idle, busy = (figures.get("delay p99", ROW, name) for name in ("idle", "busy"))
    moves = [b - i for b, i in zip(busy, idle, strict=False)]
    move = Spread.of(moves) if moves else None
    target = f"busy control plane: p99 moves by at most {MOST_P99_MOVE_US:,.0f} us"
    line = verdict(target, move, MOST_P99_MOVE_US, ".0f")
    alone = Spread.of(idle) if idle else None
    if alone is not None and move is not None and alone.most - alone.least > MOST_P99_MOVE_US:
        line = (
            f"undecided: {target}: beside an idle one it is {alone.text('.0f')}; moved by {move.text('.0f')}"
        )
    sections = {
        f"One-way delay of forwarded packets, {quantile}, microseconds": table(
            figures, f"delay {quantile}", ".0f"
        )
        for quantile in QUANTILES
    }
    return Shown(verdicts=[line], sections=sections)


PART: Final = Part("busy", "Forwarded packets beside a busy control plane", estimate, run, show)
