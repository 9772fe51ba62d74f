"""``python -m benchmarks.fallback``: UDP dies in mid-call and comes back; what does a call lose?

Every product in the same lab, one after the other or several at once, each in a lab of its own: a phone
behind a NAT and a firewall, a WAN of 20 ms each way, a server, a host behind it. One call of 50 packets/s
each way over the product's tunnel device; when it runs over UDP, the firewall stops UDP in one of four ways
for 40 s, then lets it pass again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks.fallback_rivals import PRODUCTS, Product
from benchmarks.rig import ROOT
from opentsm.errors import PlatformError
from opentsm.lab.firewall import Policy, everything, one_way, udp_blocked
from opentsm.lab.privileges import ensure_privileges
from opentsm.lab.topology import Lab, LabSpec
from opentsm.lab.traffic import MediaFlow, MediaReceiver, MediaSender, MediaSocket, send_all
from opentsm.lab.waiting import until
from opentsm.tasks import cancel, spawn

RESULTS: Final = ROOT / "bench-results"
DELAY: Final = 0.020
RATE: Final = 50.0
BLOCKED: Final = 40.0
"""Seconds UDP is blocked. Who has not recovered then is written down as losing all of it."""

WATCHED: Final = 70.0
"""Seconds after its end in which the return to UDP is waited for: a retry a minute, and the handshake."""

SETTLED: Final = 60.0
"""Seconds a product has to bring its call to UDP."""

ON_UDP: Final = 0.8
"""A call is on UDP when this share of its packets is, both ways, over a second."""

CASES: Final[dict[str, Policy]] = {
    "silent": udp_blocked(),
    "uplink only": one_way("up", "udp"),
    "downlink only": one_way("down", "udp"),
    "rejected": udp_blocked(how="reject"),
}


@dataclass
class Figures:
    """One product, one block. Seconds of media; None: it did not come (back)."""

    product: str
    settings: str
    case: str
    lost_up: float | None = None
    lost_down: float | None = None
    lost_on_return: float | None = None
    back_after: float | None = None
    obstacle: str = ""


class Watch:
    """How many UDP packets a second pass the WAN."""

    def __init__(self, lab: Lab) -> None:
        self._wan = lab.wan()
        self._last: tuple[float, int, int] | None = None
        self.share = 0.0

    async def look(self) -> float:
        stats = await asyncio.to_thread(self._wan.stats)
        up, down = (way.by_protocol.get("udp", 0) for way in (stats.up, stats.down))
        now = (time.monotonic(), up, down)
        if self._last is not None and (passed := now[0] - self._last[0]) > 0.8:
            self.share = min(now[way] - self._last[way] for way in (1, 2)) / passed / RATE
            self._last = now
        self._last = self._last or now
        return self.share

    async def on_udp(self, within: float) -> bool:
        end = time.monotonic() + within
        self._last, self.share = None, 0.0
        while time.monotonic() < end:
            if await self.look() >= ON_UDP:
                return True
            await asyncio.sleep(0.2)
        return False


async def call(lab: Lab, product: Product, figures: Figures) -> None:
    """The call, the block and its end."""
    inner = product.address()
    core = product.core
    at_phone, at_core = MediaReceiver(), MediaReceiver()
    near = MediaSocket(product.phone.udp(inner, 4000), at_phone)
    far = MediaSocket(core.udp(core.ipv4, 4000), at_core)
    up, down = MediaFlow(1, rate=RATE), MediaFlow(2, rate=RATE)
    at_core.expect(up)
    at_phone.expect(down)
    senders = [MediaSender(near, up, (core.ipv4, 4000)), MediaSender(far, down, (inner, 4000))]
    talking = spawn("media", send_all(senders))
    watch = Watch(lab)
    try:
        await until(lambda: min(len(up.numbers), len(down.numbers)) > 50, within=20, what="the call to run")
        if not await watch.on_udp(SETTLED):
            figures.obstacle = "the call never ran over UDP"
            return
        await asyncio.sleep(3.0)
        blocked = time.monotonic()
        await asyncio.to_thread(lab.firewall().apply, CASES[figures.case])
        await asyncio.sleep(BLOCKED)
        opened = time.monotonic()
        await asyncio.to_thread(lab.firewall().apply, everything())
        if await watch.on_udp(WATCHED):
            figures.back_after = round(max(0.0, time.monotonic() - opened - 1.0), 1)
        await asyncio.sleep(2.0)
        ended = time.monotonic() - 1.0
    finally:
        await cancel(talking)
        near.close()
        far.close()
    for name, flow in (("lost_up", up), ("lost_down", down)):
        setattr(figures, name, _seconds(flow, blocked - 0.1, opened))
    figures.lost_on_return = max(_seconds(flow, opened, ended) for flow in (up, down))


def _seconds(flow: MediaFlow, since: float, before: float) -> float:
    return round(sum(since <= at < before for at in flow.losses()) / RATE, 2)


def measure(name: str, case: str) -> Figures:
    """One product and one block, in a lab of their own."""
    kind = PRODUCTS[name]
    figures = Figures(kind.name, kind.settings, case)
    figures.obstacle = kind.obstacle() or ""
    if figures.obstacle:
        return figures
    with tempfile.TemporaryDirectory(prefix="opentsm-fallback-") as folder, Lab(LabSpec()) as lab:
        lab.wan().set(delay=DELAY)
        product = kind(lab, Path(folder))
        try:
            product.set_up()
            lab["phone1"].call(asyncio.run, call(lab, product, figures))
        except (PlatformError, TimeoutError, OSError) as error:
            figures.obstacle = f"{type(error).__name__}: {error}"
    return figures


def run_all(names: list[str], cases: list[str], jobs: int) -> list[Figures]:
    """All pairs, ``jobs`` at a time, each in a process of its own."""
    waiting = [(name, case) for name in names for case in cases]
    running: list[tuple[subprocess.Popen[str], str, str]] = []
    found: dict[tuple[str, str], Figures] = {}
    order = list(waiting)
    while waiting or running:
        while waiting and len(running) < jobs:
            name, case = waiting.pop(0)
            words = [sys.executable, "-m", "benchmarks.fallback", "--one", name, case]
            running.append((subprocess.Popen(words, stdout=subprocess.PIPE, text=True), name, case))
        process, name, case = running.pop(0)
        text, _ = process.communicate()
        try:
            found[name, case] = Figures(**json.loads(text.splitlines()[-1]))
        except (IndexError, ValueError):
            kind = PRODUCTS[name]
            found[name, case] = Figures(kind.name, kind.settings, case, obstacle="the measurement failed")
        print(f"-- {found[name, case]}", flush=True)
    return [found[pair] for pair in order]


def table(results: list[Figures]) -> str:
    """Markdown: products down, blocks across."""
    cases = list(dict.fromkeys(one.case for one in results))
    lines = ["| product | " + " | ".join(cases) + " |", "|---|" + "---|" * len(cases)]
    by = {(one.product, one.settings, one.case): one for one in results}
    for product, settings in dict.fromkeys((one.product, one.settings) for one in results):
        cells = [_cell(by[product, settings, case]) for case in cases if (product, settings, case) in by]
        lines.append(f"| {product}, {settings} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(one: Figures) -> str:
    if one.obstacle:
        return f"not measured: {one.obstacle[:60]}"
    up, down = (_loss(value) for value in (one.lost_up, one.lost_down))
    back = f"{one.back_after:g} s" if one.back_after is not None else f"not within {WATCHED:g} s"
    extra = f", {one.lost_on_return:g} s lost then" if one.lost_on_return else ""
    return f"{up} / {down}; back {back}{extra}"


def _loss(value: float | None) -> str:
    if value is None:
        return "?"
    return f"all of {BLOCKED:g} s" if value > BLOCKED - 1.0 else f"{value:g} s"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fallback", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(PRODUCTS), default=list(PRODUCTS))
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--jobs", type=int, default=4, help="measurements at once; each needs little CPU")
    parser.add_argument("--one", nargs=2, metavar=("PRODUCT", "CASE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(asdict(measure(*options.one))))
        return 0
    ensure_privileges()
    results = run_all(options.only, options.cases, options.jobs)
    RESULTS.mkdir(exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    path = RESULTS / f"fallback-{stamp}.json"
    path.write_text(json.dumps([asdict(one) for one in results], indent=1) + "\n")
    print(f"\nMedia lost (up / down) in {BLOCKED:g} s without UDP, and the time until UDP is used again:\n")
    print(table(results))
    print(f"\nAll figures: {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
