"""The softphone's commands against a development server and a phone, both in a thread of their own."""

from __future__ import annotations

import asyncio
import json
import queue
import re
import threading
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import opentsm
from opentsm.cli import answer, call, call_test
from opentsm.client.phone import opus
from opentsm.client.phone.call import CallError, CallSettings
from opentsm.client.phone.core import Account
from opentsm.client.phone.phone import Phone
from opentsm.client.phone.speech import speech
from opentsm.client.phone.wav import write_wav
from opentsm.server import Server
from opentsm.server.development import prepare
from opentsm.tasks import cancel, spawn


@dataclass(frozen=True)
class Site:
    """A server, and Bob, who echoes every call and may be told to be busy or to call somebody."""

    url: str
    ca: str
    bob: str
    phone: Phone
    loop: asyncio.AbstractEventLoop

    @property
    def options(self) -> list[str]:
        return ["--ca", self.ca]


async def _take_calls(phone: Phone) -> None:
    while True:
        incoming = await phone.next_call()
        await phone.answer(incoming, CallSettings(echo=True, playout=0.2))


async def _serve(folder: Path, ready: queue.Queue[Any]) -> None:
    development = prepare(folder, IPv4Address("127.0.0.1"), 0)
    server = Server(development.settings)
    await server.start()
    url, ca = f"tls://127.0.0.1:{server.listeners.number()}", str(folder / "ca.pem")
    over = asyncio.Event()
    try:
        async with opentsm.connect(url, ca=ca) as tunnel, Phone(tunnel, Account("bob", "x")) as phone:
            taking = spawn("take calls", _take_calls(phone))
            site = Site(url, ca, f"sip:bob@{tunnel.inner_address}", phone, asyncio.get_running_loop())
            ready.put((site, over))
            await over.wait()
            await cancel(taking)
    finally:
        await server.stop()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    ready: queue.Queue[tuple[Site, asyncio.Event]] = queue.Queue()
    folder = tmp_path_factory.mktemp("site")
    thread = threading.Thread(target=lambda: asyncio.run(_serve(folder, ready)))
    thread.start()
    site, over = ready.get(timeout=30)
    try:
        yield site
    finally:
        site.loop.call_soon_threadsafe(over.set)
        thread.join()


def invoke(app: typer.Typer, *arguments: str) -> tuple[str, BaseException | None]:
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "150"})
    return result.output, None if isinstance(result.exception, SystemExit) else result.exception


def json_in(output: str) -> dict[str, Any]:
    """The record among the lines that the server, in the same process, writes to its log."""
    (line,) = (line for line in output.splitlines() if line.startswith("{"))
    record: dict[str, Any] = json.loads(line)
    return record


def placing(site: Site, *arguments: str) -> list[str]:
    return ["--server", site.url, *site.options, "--direct", "--sip-user", "alice", *arguments]


def test_a_call_with_a_file_a_recording_and_the_switch(site: Site, tmp_path: Path) -> None:
    said, heard = tmp_path / "said.wav", tmp_path / "heard.wav"
    said.write_bytes(write_wav(speech(1.0)))
    arguments = placing(site, "--wav", str(said), "--record", str(heard), "--ddt-after", "300ms", "--json")
    output, error = invoke(call.app, site.bob, *arguments)
    assert error is None, output
    report = json_in(output)
    assert (report["peer"], report["end_code"], report["ended_by"]) == (site.bob, 200, "local")
    assert set(report["sent_by"]) == {"stream", "datagram"}
    assert {"switch: datagram", "path: datagram"} <= {change["what"] for change in report["changes"]}
    with wave.open(str(heard)) as recording:
        assert recording.getframerate() == 8000
        assert recording.getnframes() > 8000


def test_the_summary_for_people(site: Site) -> None:
    output, error = invoke(call.app, site.bob, *placing(site, "--seconds", "0.3", "--playout", "adaptive"))
    assert error is None, output
    assert re.search(r"call to sip:bob@\S+: hung up", output)
    assert re.search(r"sent .*packets \(\d+ by stream\)", output)
    assert "MOS" in output


@pytest.mark.skipif(opus.why_not() is not None, reason=str(opus.why_not()))
def test_opus_is_spoken_where_both_sides_can(site: Site) -> None:
    output, error = invoke(
        call.app, site.bob, *placing(site, "--seconds", "0.5", "--codec", "opus", "--json")
    )
    assert error is None, output
    report = json_in(output)
    assert (report["codec"], report["drops"]) == ("opus", {})
    assert report["received"] > 0
    output, _ = invoke(call.app, site.bob, *placing(site, "--seconds", "0.3", "--json"))
    assert json_in(output)["codec"] == "pcmu"


def test_a_call_that_is_refused_fails_with_the_reason(site: Site) -> None:
    site.loop.call_soon_threadsafe(site.phone.set_busy, True)
    try:
        output, error = invoke(call.app, site.bob, *placing(site, "--json"))
    finally:
        site.loop.call_soon_threadsafe(site.phone.set_busy, False)
    assert isinstance(error, CallError)
    assert str(error) == f"call to {site.bob}: 486 Busy Here"
    assert json_in(output)["end_code"] == 486


def test_answer_takes_a_call_and_ends(site: Site, tmp_path: Path) -> None:
    """Bob calls whoever has said to be ready; he knows the address from the server's next lease."""
    heard = tmp_path / "heard.wav"
    calls: list[asyncio.Future[Any]] = []

    async def call_back(address: str) -> None:
        settings = CallSettings(samples=speech(0.5), playout=0.2)
        placed = await site.phone.call(f"sip:carol@{address}", settings)
        await placed.answered()
        while len(placed.media.received) < 20:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await placed.hang_up()

    def ready(record: dict[str, Any]) -> None:
        printed.append(record)
        if record["event"] == "ready":
            work = call_back(record["inner_address"])
            calls.append(asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, site.loop)))

    printed: list[dict[str, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer, "print_json", ready)
        patch.setattr("opentsm.cli.softphone.print_json", ready)
        arguments = ["--server", site.url, *site.options, "--direct", "--sip-user", "carol", "--calls", "1"]
        output, error = invoke(answer.app, *arguments, "--record", str(heard), "--json")
    assert error is None, output
    assert [record["event"] for record in printed] == ["ready", "call"]
    assert (printed[1]["incoming"], printed[1]["ended_by"]) == (True, "remote")
    assert heard.exists()


def test_call_test_judges_both_paths(site: Site) -> None:
    output, error = invoke(call_test.app, site.url, *site.options, "--seconds", "400ms", "--json")
    assert error is None, output
    paths = json_in(output)["paths"]
    assert [(path["path"], path["received"]) for path in paths] == [("stream", 20), ("datagram", 20)]


def test_call_test_for_people_and_an_echo_that_is_not_there(site: Site) -> None:
    output, error = invoke(call_test.app, site.url, *site.options, "--seconds", "400ms")
    assert error is None, output
    assert re.search(r"stream .*\d\.\d\d", output)
    assert "Better for calls here" in output
    output, _ = invoke(call_test.app, site.url, *site.options, "--seconds", "200ms", "--echo", "10.64.0.1:9")
    assert "no way through" in output
    assert "is the echo service on" in output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--mode", "carrier-pigeon"], "stream, datagram or auto"),
        (["--seconds", "soon"], "write 5s, 500ms or 2m"),
        (["--playout", "much"], "60ms, 0.1s or adaptive"),
        (["--dtmf", "call me"], "up to 64 of"),
        (["--codec", "mp3"], "g711 or opus"),
    ],
)
def test_options_that_make_no_sense_say_what_to_write(arguments: list[str], says: str) -> None:
    output, _ = invoke(call.app, "bob", "--server", "tls://127.0.0.1:1", "--sip-user", "a", *arguments)
    assert says in " ".join(output.replace("│", " ").split())


def test_who_one_is_has_to_be_said() -> None:
    _, error = invoke(call.app, "bob", "--server", "tls://127.0.0.1:1")
    assert "give --user NAME" in str(error)


def test_a_server_without_sip_says_what_to_do(site: Site) -> None:
    _, error = invoke(call.app, "bob", "--server", site.url, *site.options, "--sip-user", "alice")
    assert "give --sip-server HOST:PORT, or --direct" in str(error)


def test_a_file_that_cannot_be_played(tmp_path: Path) -> None:
    file = tmp_path / "song.wav"
    file.write_bytes(b"OggS")
    arguments = ["--server", "tls://127.0.0.1:1", "--sip-user", "a", "--wav", str(file)]
    _, error = invoke(call.app, "bob", *arguments)
    assert "not a WAV file" in str(error)
