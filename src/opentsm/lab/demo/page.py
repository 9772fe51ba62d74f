"""The demonstration as one HTML file that needs nothing else, and as a table for the terminal."""

from __future__ import annotations

import base64
import html
import json
import os
import platform
from array import array
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from typing import Final

from opentsm import __version__
from opentsm.client.phone.g711 import PCMU
from opentsm.client.phone.rtp import PTIME
from opentsm.client.phone.speech import speech
from opentsm.client.phone.wav import write_wav
from opentsm.lab.demo.measure import Numbers
from opentsm.lab.demo.phones import PLAYOUT
from opentsm.lab.demo.plots import call_plot, network_picture
from opentsm.lab.demo.stage import LOSS, NEAR_ROUND_TRIP, ROUND_TRIP
from opentsm.lab.demo.story import Played, Result
from opentsm.lab.hearing import why_no_pesq
from opentsm.lab.report import text_table

COLUMNS: Final = (
    *("part", "stretch", "direction", "packets", "by DDT %", "lost %", "late+lost %"),
    *("gap ms", "p50 ms", "p95 ms", "MOS", "PESQ"),
)


def rows(result: Result) -> list[tuple[str, ...]]:
    """A row for each stretch and direction, under COLUMNS."""
    return [
        (f"({played.part.letter})", span.title, direction.name, *_cells(direction.spans[at]))
        for played in result.parts
        for at, span in enumerate(played.spans)
        for direction in played.directions
    ]


def _cells(numbers: Numbers) -> tuple[str, ...]:
    packets = max(1, numbers.packets)
    return (
        str(numbers.packets),
        f"{numbers.datagram_percent:.0f}",
        f"{100.0 * numbers.lost / packets:.1f}",
        f"{numbers.missed_percent:.1f}",
        f"{1000.0 * numbers.gap:.0f}",
        f"{1000.0 * numbers.delay_p50:.0f}",
        f"{1000.0 * numbers.delay_p95:.0f}",
        f"{numbers.mos:.2f}",
        "-" if numbers.pesq is None else f"{numbers.pesq:.2f}",
    )


def table(result: Result) -> str:
    """For the terminal."""
    lines = [text_table(rows(result), COLUMNS)]
    if (reason := why_no_pesq()) is not None:
        lines.append(f"PESQ is left out: {reason}\n")
    if skipped(result):
        lines.append(f"{busy(result)}\n")
    return "".join(lines)


def skipped(result: Result) -> int:
    """Packets that the phones could not send in time."""
    return sum(direction.skipped for played in result.parts for direction in played.directions)


def busy(result: Result) -> str:
    """What they mean."""
    return (
        f"This machine was too busy to send {skipped(result)} packets in time: what looks like a bad network "
        "may be that. Run it again when it is quieter."
    )


def findings(result: Result) -> list[tuple[str, str, str]]:
    """What the run has shown, as (figure, unit or name, sentence), from its own numbers."""
    spans = {
        (played.part.letter, span.title): [direction.spans[at] for direction in played.directions]
        for played in result.parts
        for at, span in enumerate(played.spans)
    }
    found = []
    for key, words in (
        (("a", "on the stream"), "on the TLS stream, forced"),
        (("b", "after the switch"), "on the datagram tunnel, switched on in mid-call"),
        (("d", "with redundancy"), "there with redundancy, as the measured loss asks for"),
    ):
        if key in spans:
            found.append(
                (f"{worst_mos(spans[key]):.2f}", "MOS", f"{words} ({missed(spans[key])} lost or late)")
            )
    blocked = spans.get(("c", "UDP blocked"))
    if blocked:
        gap = 1000.0 * max(numbers.gap for numbers in blocked)
        sentence = (
            "longest silence of either side while UDP was blocked in mid-call, without a word from anybody"
        )
        found.append((f"{gap:.0f}", "ms", sentence))
    return found


def worst_mos(numbers: Sequence[Numbers]) -> float:
    """Of both directions: a call is as good as its worse half."""
    return min(one.mos for one in numbers)


def missed(numbers: Sequence[Numbers]) -> str:
    """Lost or late in both directions, as text."""
    low, high = (f"{end(one.missed_percent for one in numbers):.1f}" for end in (min, max))
    return f"{low} %" if low == high else f"{low} to {high} %"


# -- the page ----------------------------------------------------------------------------------------------


def _style() -> str:
    return files(__package__ or "").joinpath("page.css").read_text().replace("\n", "")


def page(result: Result, seed: int) -> str:
    """The report."""
    sections = [_hero(result), _network(result), _overview(result)]
    sections += [_call(played) for played in result.parts]
    sections += [_method(result, seed), _records(result)]
    title = "A call through a firewall, measured"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>OpenTSM: {title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_style()}</style></head><body><main>{''.join(sections)}</main></body></html>\n"
    )


def _hero(result: Result) -> str:
    tiles = "".join(
        f'<div class="tile"><b>{html.escape(figure)}<small>{html.escape(unit)}</small></b>'
        f"<span>{html.escape(sentence)}</span></div>"
        for figure, unit, sentence in findings(result)
    )
    seconds = sum(played.part.seconds for played in result.parts)
    return (
        '<header><p class="kicker">OpenTSM demonstration</p><h1>A call through a firewall, measured</h1>'
        f"<p>Two phones called each other {len(result.parts)} times, for {seconds:.0f} seconds in all, "
        "through a real server. The same speech, the same network, the same chances: only the tunnel under "
        "the voice differs. Everything on this page was measured in this run.</p>"
        f'<div class="tiles">{tiles}</div></header>'
    )


def _network(result: Result) -> str:
    if result.left_out:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in result.left_out)
        return (
            '<section class="warn"><h2>A reduced demonstration</h2><p>This machine lets nobody make network '
            f"namespaces, so this run has left out:</p><ul>{items}</ul></section>"
        )
    inner = result.addresses
    bad = [f"WAN: {1000 * ROUND_TRIP:.0f} ms round trip,", f"{100 * LOSS:.0f} % lost each way"]
    near = [f"WAN: {1000 * NEAR_ROUND_TRIP:.0f} ms round trip,", "nothing lost"]
    middle = [
        f"alice is {inner.get('alice', '?')} inside,",
        f"bob is {inner.get('bob', '?')}, whatever the tunnel",
    ]
    return f"<section><h2>The network</h2>{network_picture(bad, middle, near)}</section>"


def _overview(result: Result) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows(result)
    )
    reason = why_no_pesq()
    note = f"<p>PESQ is left out: {html.escape(reason)}</p>" if reason else ""
    note += f"<p><strong>{html.escape(busy(result))}</strong></p>" if skipped(result) else ""
    return (
        '<section><h2>What a listener had of it</h2><div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}"
        f"<p class='small'>late: came, but not by its moment in a {1000 * PLAYOUT:.0f} ms play-out buffer. "
        "gap: the longest run of speech that was lost or late. p50, p95: one-way delay from program to "
        "program. MOS: E-model. PESQ: the recording beside what was said; G.711 on a perfect line has about "
        "4.0.</p></section>"
    )


def _call(played: Played) -> str:
    legend = (
        '<p class="legend"><span class="dot s"></span>TLS stream <span class="dot d"></span>datagram tunnel '
        '<span class="dot l"></span>late <span class="dot x"></span>lost</p>'
    )
    players = "".join(
        f"<figure><figcaption>{html.escape(direction.name)}, as heard</figcaption>"
        f"{player(direction.recording)}</figure>"
        for direction in played.directions
    )
    wire = html.escape(str(played.wire))
    outside = f"<p class='small'>Outside alice's firewall: {wire}; nothing else.</p>" if wire else ""
    return (
        f'<section id="{played.part.letter}"><h2>({played.part.letter}) {html.escape(played.part.title)}</h2>'
        f'{legend}{call_plot(played)}<div class="players">{players}</div>{outside}</section>'
    )


def player(samples: array[int]) -> str:
    """An audio element that carries its sound with it, as G.711 in WAV: half the size of linear samples."""
    data = base64.b64encode(write_wav(samples, PCMU)).decode()
    return f'<audio controls preload="metadata" src="data:audio/wav;base64,{data}"></audio>'


def _method(result: Result, seed: int) -> str:
    facts = {
        "when": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        "OpenTSM": __version__,
        "Python": platform.python_version(),
        "kernel": platform.release(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end",
        "seed of the network": str(seed),
        "packets not sent in time": str(skipped(result)),
    }
    items = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items())
    network = (
        "Network namespaces with the kernel's own NAT and firewall, and a WAN emulator whose losses are from "
        "a seed; it begins anew for each call, so that all three meet the same weather. "
        if not result.left_out
        else ""
    )
    return (
        f"<section><h2>How it was measured</h2><p>{network}The phones are the SDK's own agents: SIP with "
        "digest authentication through the server's registrar and proxy, G.711 in packets of "
        f"{1000 * PTIME:.0f} ms, a fixed play-out buffer of {1000 * PLAYOUT:.0f} ms with concealment. Both "
        "keep a record of every packet on one clock; joined by sequence number they give each packet's fate "
        "and tunnel. The colour of a packet is the tunnel by which it crossed alice's WAN (while a side is "
        "in doubt about UDP, what it sends takes both, and has the datagram tunnel's). MOS follows from "
        "delay, loss and lateness (ITU-T G.107); PESQ (ITU-T P.862) compares what was recorded after the "
        f"play-out buffer with what was said.</p><dl>{items}</dl>"
        f"<figure><figcaption>what was said</figcaption>{player(speech())}</figure></section>"
    )


def _records(result: Result) -> str:
    lines = "\n".join(json.dumps(record) for record in result.records)
    return (
        "<section><details><summary>The server's own records of these calls</summary>"
        f"<pre>{html.escape(lines)}</pre></details></section>"
    )
