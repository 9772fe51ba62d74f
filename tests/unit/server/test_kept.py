"""Sessions that outlive their server process, and proofs that somebody else shows."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import sqlite3
from pathlib import Path

import pytest

from opentsm.config import loads
from opentsm.protocol import actions as a
from opentsm.protocol.resume import resume_proof
from opentsm.protocol.states import Client as State
from opentsm.protocol.states import Server as ServerState
from opentsm.server.keeping import store_path
from opentsm.store import SqliteStore
from opentsm.types import Code, Flow, PathMode, Protocol, Tsid
from opentsm.wire.codec import encode
from opentsm.wire.messages import ConfigurationRequest, ConfigurationResponse, ReleaseRequest
from tests.unit.server.harness import Client, Site, configuration, running, until

ECHO = "echo = 7"
ADDRESS = "fd00:64:0:0:1::"


def stored(folder: Path, store: Path, **parts: str) -> str:
    text = configuration(folder, **{"realm": ECHO, **parts})
    return text.replace('admin-socket = ""', f'admin-socket = ""\nstore = "{store}"')


async def written(site: Site) -> None:
    """Everything that has happened so far is in the file."""
    store = site.server.hub.keeping._store
    assert store is not None
    await store.sessions(0.0)


def copy_of(store: Path, folder: Path) -> Path:
    """The file as a process that was killed at this moment leaves it."""
    folder.mkdir()
    for file in store.parent.glob(f"{store.name}*"):
        shutil.copy(file, folder / file.name)
    return folder / store.name


def point(client: Client, site: Site) -> None:
    """The client's server is another process now."""
    client._number = site.server.port()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "server.db"


async def test_a_killed_server_finds_its_clients_again(
    certificates_folder: Path, store: Path, tmp_path: Path
) -> None:
    async with running(certificates_folder, stored(certificates_folder, store)) as first:
        client, other = await first.up(), await first.up()
        inner, before, tsid = client.socket(), client.inner, client.tsid
        flow = Flow(Protocol.UDP, inner.port)
        client.act("set_mode", flow, PathMode.DATAGRAM)
        await until(lambda: client.seen.last(a.DdtEnabled), "the DDT")
        await written(first)
        left = copy_of(store, tmp_path / "left")
        async with running(certificates_folder, stored(certificates_folder, left)) as second:
            facts = second.server.facts().interfaces[0]
            assert (facts.active, facts.persistent) == (2, 2)
            point(client, second)
            client.act("path_lost", 0, "reset")
            client.redial()
            await until(lambda: client.seen.last(a.Resumed), "resumed by the next process")
            assert (client.inner, client.tsid) == (before, tsid)
            client.seen.events.clear()
            await until(lambda: client.seen.last(a.DdtEnabled), "the DDT made anew")
            inner.send(b"again", "10.64.0.1", 7)
            await inner.heard(b"again")
            third = await second.up()
            assert set(third.inner).isdisjoint({*client.inner, *other.inner}), "a kept address is not free"


async def test_a_session_that_ended_is_not_taken_up(
    certificates_folder: Path, store: Path, tmp_path: Path
) -> None:
    async with running(certificates_folder, stored(certificates_folder, store)) as first:
        client = await first.up()
        client.act("close")
        await until(lambda: client.ended and not len(first.server.hub.registry), "the release")
        await written(first)
        left = copy_of(store, tmp_path / "left")
    async with running(certificates_folder, stored(certificates_folder, left)) as second:
        assert len(second.server.hub.registry) == 0


async def test_a_server_that_stops_in_good_order_keeps_what_it_says_goodbye_to(
    certificates_folder: Path, store: Path
) -> None:
    async with running(certificates_folder, stored(certificates_folder, store)) as first:
        client = await first.up()
        before = client.inner
        await first.server.stop()
        await until(lambda: client.session.state is State.PERSISTENT, "goodbye")
    async with running(certificates_folder, stored(certificates_folder, store)) as second:
        (record,) = second.server.hub.registry
        assert [str(address) for address in record.addresses] == before
        assert record.value.state is ServerState.PERSISTENT


async def test_sessions_of_a_server_that_was_away_too_long_are_forgotten(
    certificates_folder: Path, store: Path
) -> None:
    async with running(certificates_folder, stored(certificates_folder, store)) as first:
        await first.up()
        await first.server.stop()
    with sqlite3.connect(store) as file:
        file.execute("UPDATE moment SET at = at - 3600")
    file.close()
    async with running(certificates_folder, stored(certificates_folder, store)) as second:
        assert len(second.server.hub.registry) == 0


async def test_what_the_new_configuration_has_no_place_for_is_counted_and_let_go(
    certificates_folder: Path, store: Path
) -> None:
    async with running(certificates_folder, stored(certificates_folder, store)) as first:
        await first.up()
        await first.server.stop()
    moved = stored(certificates_folder, store).replace("10.64.1.0/24", "10.64.2.0/24")
    async with running(certificates_folder, moved) as second:
        assert len(second.server.hub.registry) == 0
        assert second.server.hub.counts["sessions_not_restored"] == 1
        (family,) = {s.leased for s in second.server.hub.leases.statistics()}
        assert family == 0, "no half of a lease is left behind"
        await written(second)
    async with running(certificates_folder, stored(certificates_folder, store)) as third:
        assert len(third.server.hub.registry) == 0


async def test_no_secret_of_a_client_is_in_the_store(certificates_folder: Path, store: Path) -> None:
    async with running(certificates_folder, stored(certificates_folder, store)) as site:
        client = await site.up()
        secret = client.session._secret
        assert secret is not None
        await written(site)
        assert not any(secret in file.read_bytes() for file in store.parent.glob("server.db*"))


def test_where_sessions_are_kept(certificates_folder: Path, store: Path) -> None:
    named = loads(stored(certificates_folder, store), source="x", base=store.parent)
    bare = loads(configuration(certificates_folder), source="x", base=store.parent)
    assert store_path(named, {"STATE_DIRECTORY": "/var/lib/opentsm"}) == store
    assert store_path(bare, {"STATE_DIRECTORY": "/var/lib/opentsm:/other"}) == Path(
        "/var/lib/opentsm/server.db"
    )
    assert store_path(bare, {}) is None


# -- thieves ------------------------------------------------------------------------------------------------


def impostor(site: Site, tsid: Tsid, secret: bytes, sequence: int = 1000) -> Client:
    """Somebody who claims this session with this secret."""
    thief = site.client()
    thief.session._core._sequence = sequence
    thief.session._requests.tsid = tsid
    thief.session._secret = secret
    thief.session._machine._state = State.PERSISTENT
    return thief


def secret_of(client: Client) -> bytes:
    assert client.session._secret is not None
    return client.session._secret


async def refused(thief: Client) -> None:
    await until(lambda: thief.seen.messages, "an answer")
    answer = thief.seen.messages[0]
    assert isinstance(answer, ConfigurationResponse)
    assert (answer.code, answer.resume_secret, answer.inner_ipv4) == (Code.RESUME_REFUSED, None, None)


async def undisturbed(client: Client) -> None:
    inner = client.socket()
    inner.send(b"undisturbed", "10.64.0.1", 7)
    await inner.heard(b"undisturbed")
    assert client.session.state is State.ACTIVE


async def test_a_recorded_proof_is_worth_nothing_on_another_connection(certificates_folder: Path) -> None:
    async with running(certificates_folder, configuration(certificates_folder, realm=ECHO)) as site:
        client = await site.up()
        old = secret_of(client)
        client.act("path_lost", 0, "reset")
        client.redial()
        await until(lambda: client.seen.last(a.Resumed), "resumed")
        recorded = resume_proof(old, client.tsid, client.session._binding)
        for proof in (recorded, resume_proof(secret_of(client), client.tsid, client.session._binding)):
            thief = await site.hostile_stream()
            await thief.send(encode(ConfigurationRequest(tsid=client.tsid, sequence=1, resume_proof=proof)))
            answer = await thief.message()
            assert isinstance(answer, ConfigurationResponse)
            assert answer.code is Code.RESUME_REFUSED
            thief.writer.close()
        await undisturbed(client)


async def test_a_proof_is_good_for_its_own_session_only(certificates_folder: Path) -> None:
    async with running(certificates_folder, configuration(certificates_folder, realm=ECHO)) as site:
        one, other = await site.up(), await site.up()
        thief = impostor(site, other.tsid, secret_of(one))
        thief.dial()
        await refused(thief)
        await until(lambda: thief.session.state is State.ACTIVE, "the front door")
        assert set(thief.inner).isdisjoint({*one.inner, *other.inner})
        await undisturbed(one)
        await undisturbed(other)


async def test_a_secret_that_was_used_is_worth_nothing_once_the_client_has_the_next(
    certificates_folder: Path,
) -> None:
    async with running(certificates_folder, configuration(certificates_folder, realm=ECHO)) as site:
        client = await site.up()
        old = secret_of(client)
        client.act("path_lost", 0, "reset")
        client.redial()
        await until(lambda: client.seen.last(a.Resumed), "resumed")
        client.act("want_ddt", True)  # it speaks on the new stream
        await until(lambda: client.seen.last(a.DdtAvailable), "an answer to what it says")
        thief = impostor(site, client.tsid, old)
        thief.dial()
        await refused(thief)
        await undisturbed(client)


@pytest.mark.parametrize("step", [0, 1], ids=["same-sequence", "growing"])
async def test_of_racers_with_one_secret_exactly_one_has_the_session(
    certificates_folder: Path, step: int
) -> None:
    async with running(certificates_folder, configuration(certificates_folder, realm=ECHO)) as site:
        client = await site.up()
        tsid, before = client.tsid, client.inner
        racers = [impostor(site, tsid, secret_of(client), 1000 + step * n) for n in range(4)]
        for racer in racers:
            racer.dial()
        await until(lambda: all(racer.seen.messages for racer in racers), "answers")
        (record,) = [r for r in site.server.hub.registry if r.stream_tsid == tsid]

        def holders() -> list[Client]:
            there = [one for one in (client, *racers) if one.stream and one.session.configuration]
            return [one for one in there if one.inner == before]

        await until(lambda: len(holders()) == 1, "all streams but one to be closed")
        (winner,) = holders()
        assert winner.session.state is State.ACTIVE
        assert record.value.state is ServerState.ACTIVE
        assert client.stream is None, "the stream that was there is closed"
        await undisturbed(winner)


async def test_nothing_said_late_on_a_replaced_stream_counts(certificates_folder: Path) -> None:
    async with running(certificates_folder, configuration(certificates_folder, realm=ECHO)) as site:
        client = await site.up()
        heir = impostor(site, client.tsid, secret_of(client))
        heir.dial()
        await until(lambda: heir.session.state is State.ACTIVE, "the session on another stream")
        client.send(ReleaseRequest(tsid=client.tsid, sequence=77))
        await until(lambda: client.stream is None, "the old stream to be closed")
        assert heir.inner
        await undisturbed(heir)
        assert not any(getattr(message, "sequence", 0) == 77 for message in client.seen.messages)


async def test_random_proofs_in_any_number_change_nothing(certificates_folder: Path) -> None:
    async with running(certificates_folder, configuration(certificates_folder, realm=ECHO)) as site:
        client = await site.up()
        thieves = [impostor(site, client.tsid, secrets.token_bytes(32)) for _ in range(20)]
        for thief in thieves:
            thief.dial()
        await asyncio.gather(*(refused(thief) for thief in thieves))
        await undisturbed(client)
        assert site.counter("resume_refused") == 20


async def test_the_store_drops_nothing_of_an_ordinary_day(certificates_folder: Path, store: Path) -> None:
    async with running(certificates_folder, stored(certificates_folder, store)) as site:
        clients = [await site.up() for _ in range(10)]
        await written(site)
        assert site.server.hub.keeping.dropped() == {}
        opened = await SqliteStore.open(store)
        assert {row.tsid for row in await opened.sessions(0.0)} == {client.tsid for client in clients}
        await opened.close()
