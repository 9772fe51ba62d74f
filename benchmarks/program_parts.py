"""The parts that are programs of their own: set-ups and idle tunnels, delay, rows in tables, fallback."""

from __future__ import annotations

from typing import Any, Final

from benchmarks import fallback, plot
from benchmarks.fallback_rivals import PRODUCTS
from benchmarks.figures import Figures, Spread, table, verdict
from benchmarks.parts import Part, Settings, Shown, module_rows

# -- set-ups and idle tunnels -------------------------------------------------------------------------

STAGES: Final = (1_000, 4_000, 9_000, 18_000)
"""Tunnels of each kind that are up at the end of each stage of a server that grows."""

MOST_KIB: Final = {"stream": 30.0, "datagram": 4.0}
MOST_SET_UP_US: Final = {"stream": 1e6 / 1_500, "datagram": 1e6 / 8_000}
"""1,500 TLS tunnels and 8,000 datagram tunnels a second on a core."""

KINDS: Final = {"stream": "TLS tunnel", "datagram": "datagram tunnel"}
SET_UP_SECONDS: Final = 140.0
MOST_ROUNDS: Final = 2
"""A server that grows is its own average over many tunnels."""


def _run_set_up(settings: Settings, out: Figures) -> None:
    stages = ",".join(map(str, STAGES))
    for number in range(1, min(settings.rounds, MOST_ROUNDS) + 1):
        settings.say_round(number, f"up to {STAGES[-1]:,} tunnels of each kind")
        for row in module_rows("benchmarks.capacity", "--json", "--tunnels", stages):
            name = f"{row['tunnels']:,}"
            for kind, series in KINDS.items():
                out.add("us", name, series, row[f"{kind}_us"])
                out.add("kib", name, series, row[f"{kind}_kib"])
                out.add("control_us", name, series, row[f"{kind}_control_us"])
                out.add("per second", name, series, row[f"{kind}_rate"])
            out.add("answered", name, "asked", row["asked"])
            out.add("answered", name, "answered", row["answered"])


def _show_set_up(figures: Figures) -> Shown:
    verdicts = []
    rows = [f"{stage:,}" for stage in (STAGES[0], STAGES[-1])]
    for kind, series in KINDS.items():
        for row in rows:
            most = MOST_SET_UP_US[kind]
            target = (
                f"set-up of a {series}, {row} up: at most {most:.0f} us of CPU ({1e6 / most:,.0f}/s a core)"
            )
            verdicts.append(verdict(target, figures.spread("us", row, series), most, ".0f"))
            target = f"memory of a {series}, {row} up: at most {MOST_KIB[kind]:g} KiB"
            verdicts.append(verdict(target, figures.spread("kib", row, series), MOST_KIB[kind]))
    asked, answered = (figures.get("answered", rows[-1], name) for name in ("asked", "answered"))
    silent = [a - b for a, b in zip(asked, answered, strict=False)]
    target = f"{STAGES[-1]:,} TLS tunnels each with its datagram tunnel: all answer; silent"
    verdicts.append(verdict(target, Spread.of(silent) if silent else None, 0, ".0f"))
    sections = {
        "Server CPU, microseconds per set-up": table(figures, "us", ".0f", head="tunnels of a kind"),
        "Of it the control plane's, one thread": table(
            figures, "control_us", ".0f", head="tunnels of a kind"
        ),
        "Server memory, KiB per idle tunnel": table(figures, "kib", head="tunnels of a kind"),
        "Set-ups per second, clients on the same two cores": table(
            figures, "per second", ",.0f", head="tunnels of a kind"
        ),
        "Tunnels that answered in the end": table(figures, "answered", ",.0f", head="tunnels of a kind"),
    }
    if not figures.rows("us"):
        return Shown(verdicts)
    axis = plot.Axis("tunnels of each kind that are up", logarithmic=False)
    plots = {
        "set-up": plot.lines(figures, "us", "Server CPU, microseconds for each further tunnel", axis),
        "memory": plot.lines(figures, "kib", "Memory of the server, KiB for each further tunnel", axis),
    }
    return Shown(verdicts, sections, plots)


SET_UP: Final = Part(
    "set-up",
    "Set-ups and idle tunnels",
    lambda settings: SET_UP_SECONDS * min(settings.rounds, MOST_ROUNDS),
    _run_set_up,
    _show_set_up,
)

# -- one-way delay ------------------------------------------------------------------------------------

QUANTILES: Final = ("p50", "p90", "p99", "max")
WAYS: Final = {"plain": "plain", "idle": "opentsm", "churn": "opentsm, 500 tunnels/s"}
MOST_OF_PLAIN: Final = 2.0
MOST_IDLE_P99_US: Final = 1_000.0
MOST_CHURN_P99_US: Final = 2_000.0
DELAY_SECONDS: Final = 6.0
"""A p99 is that of three hundred packets."""


def _run_delay(settings: Settings, out: Figures) -> None:
    words = ("--json", "--rounds", str(settings.rounds), "--seconds", f"{DELAY_SECONDS:g}")
    [answer] = module_rows("benchmarks.delay", *words, apart=False)
    for one in answer["readings"]:
        for quantile in QUANTILES:
            out.add(f"delay {quantile}", one["direction"], WAYS[one["way"]], one["delay_us"][quantile])
    for one in answer["churn"]:
        out.add("churn", "a round", "tunnels per second", one["rate"])
        out.add("churn", "a round", "failed", one["failed"])


def _show_delay(figures: Figures) -> Shown:
    verdicts = []
    for row in ("up", "down"):
        share = figures.ratio("delay p50", row, WAYS["idle"], [WAYS["plain"]])
        verdicts.append(verdict(f"delay {row}, idle path: p50 at most twice plain's", share, MOST_OF_PLAIN))
        idle, churn = (figures.spread("delay p99", row, WAYS[way]) for way in ("idle", "churn"))
        verdicts.append(verdict(f"delay {row}, idle path: p99 at most 1 ms", idle, MOST_IDLE_P99_US, ".0f"))
        target = f"delay {row} while 500 tunnels/s come and go: p99 at most 2 ms"
        verdicts.append(verdict(target, churn, MOST_CHURN_P99_US, ".0f"))
    shown = Shown(verdicts)
    for quantile in QUANTILES:
        heading = f"One-way delay, {quantile}, microseconds"
        shown.sections[heading] = table(figures, f"delay {quantile}", ".0f", head="direction")
    shown.sections["Tunnels that came and went"] = table(figures, "churn", ".0f", head="")
    return shown


DELAY: Final = Part(
    "delay",
    "One-way delay, alone and while tunnels come and go",
    lambda settings: (settings.rounds + 1) * (6 * (DELAY_SECONDS + 0.6) + 4),
    _run_delay,
    _show_delay,
)

# -- rows in tables -----------------------------------------------------------------------------------

ROWS: Final = (1_000, 50_000, 200_000)
MOST_GROWTH: Final = 1.2
ROW_FIGURES: Final = {
    "packet_us": ("us per packet", ".1f"),
    "stream_us": ("us per TLS tunnel", ".0f"),
    "datagram_us": ("us per datagram tunnel", ".0f"),
    "close_us": ("us per end", ".0f"),
    "status_ms": ("status, ms", ".1f"),
    "metrics_ms": ("metrics, ms", ".1f"),
    "page_ms": ("a page of tunnels, ms", ".1f"),
    "stall_ms": ("longest stall, ms", ".0f"),
}


def _run_rows(settings: Settings, out: Figures) -> None:
    words = ("--json", "--rounds", str(settings.rounds), "--seconds", f"{settings.seconds:g}")
    for one in module_rows("benchmarks.rows", *words, "--rows", ",".join(map(str, ROWS))):
        row = f"{one['rows']:,}"
        out.add("kib", row, "KiB per generated row", one["kib"])
        for figures in one["rounds"]:
            for name in ROW_FIGURES:
                out.add(name, row, "value", figures.get(name))


def _show_rows(figures: Figures) -> Shown:
    verdicts = []
    least, most = (f"{rows:,}" for rows in (ROWS[0], ROWS[-1]))
    for name in ("packet_us", "stream_us", "datagram_us"):
        pairs = zip(figures.get(name, most, "value"), figures.get(name, least, "value"), strict=False)
        shares = [a / b for a, b in pairs if b]
        target = f"{most} tunnels in tables, {ROW_FIGURES[name][0]}: at most {MOST_GROWTH:g} times {least}'s"
        verdicts.append(verdict(target, Spread.of(shares) if shares else None, MOST_GROWTH, ".2f"))
    heads = ["KiB per generated row", *(title for title, _ in ROW_FIGURES.values())]
    lines = [f"| tunnels in tables | {' | '.join(heads)} |", f"|---:|{'---:|' * len(heads)}"]
    for row in figures.rows("packet_us"):
        spreads = [(figures.spread("kib", row, "KiB per generated row"), ".1f")]
        spreads += [(figures.spread(name, row, "value"), form) for name, (_, form) in ROW_FIGURES.items()]
        lines.append(f"| {row} | {' | '.join(s.text(form) if s else '-' for s, form in spreads)} |")
    if not figures.rows("packet_us"):
        return Shown(verdicts)
    plots = {}
    for name, series in (("packet_us", "a relayed packet"), ("stream_us", "a set-up of a TLS tunnel")):
        axis = plot.Axis("tunnels in the tables, of which 1,000 talk", names={"value": series})
        title = f"Server CPU, microseconds for {series}"
        plots[f"rows-{name.removesuffix('_us')}"] = plot.lines(figures, name, title, axis)
    return Shown(verdicts, {"A thousand clients beside rows": lines}, plots)


ROWS_PART: Final = Part(
    "rows",
    "Many tunnels in the tables",
    lambda settings: 120 + (settings.rounds + 1) * len(ROWS) * (settings.seconds + 8),
    _run_rows,
    _show_rows,
)

# -- UDP dies in mid-call -----------------------------------------------------------------------------

JOBS: Final = 4
CASE_SECONDS: Final = 130.0


def _run_fallback(_: Settings, out: Figures) -> None:
    for one in fallback.run_all(list(PRODUCTS), list(fallback.CASES), JOBS):
        row = f"{one.product}, {one.settings}"
        if one.obstacle:
            out.left_out[f"{row}, {one.case}"] = one.obstacle
        out.add("lost up", row, one.case, one.lost_up)
        out.add("lost down", row, one.case, one.lost_down)
        out.add("back", row, one.case, one.back_after)


def _show_fallback(figures: Figures) -> Shown:
    titles: dict[str, Any] = {
        "lost up": "Media lost up, seconds",
        "lost down": "Media lost down, seconds",
        "back": "UDP carries the call again, seconds after the block",
    }
    sections = {title: table(figures, name, ".2f", head="product") for name, title in titles.items()}
    return Shown(sections=sections if figures.values else {})


FALLBACK: Final = Part(
    "fallback",
    "When UDP dies in mid-call",
    lambda _: CASE_SECONDS * len(PRODUCTS) * len(fallback.CASES) / JOBS,
    _run_fallback,
    _show_fallback,
)
