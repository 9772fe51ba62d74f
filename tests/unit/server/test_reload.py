"""Changing a running server: new tunnels see it, existing ones do not, and a bad file changes nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest

from opentsm.admin import certificates
from opentsm.admin.health import warnings
from opentsm.config import load, loads
from opentsm.config.schema import OBJECTS, Effect
from opentsm.errors import ConfigError
from opentsm.protocol import actions as a
from opentsm.protocol.states import Client as State
from opentsm.server import Server
from opentsm.server.merge import merge
from opentsm.server.watch import Watch, signature
from opentsm.types import Flow, PathMode, Protocol
from tests.unit.server.harness import Client, Site, configuration, running, until


async def ddt_available(client: Client) -> bool:
    """What the client is told when it asks for the DDT."""
    inner = client.socket()
    client.act("set_mode", Flow(Protocol.UDP, inner.port), PathMode.DATAGRAM)
    await until(lambda: client.seen.last(a.DdtAvailable), "an answer about the DDT")
    available = client.seen.last(a.DdtAvailable).available
    assert isinstance(available, bool)
    return available


@pytest.fixture
def file(certificates_folder: Path, tmp_path: Path) -> Path:
    """A configuration file without DDT."""
    path = tmp_path / "server.toml"
    path.write_text(configuration(certificates_folder, realm="echo = 7").replace('["SIP", "DDT"]', '["SIP"]'))
    return path


def edit(file: Path, *changes: tuple[str, str]) -> None:
    """Replace texts in a file; each must be there."""
    text = file.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)


def write(file: Path, text: str) -> None:
    file.write_text(text)


async def test_services_hold_for_new_tunnels_only(certificates_folder: Path, file: Path) -> None:
    async with running(certificates_folder, load(file)) as site:
        old = await site.up()
        edit(file, ('["SIP"]', '["SIP", "DDT"]'))
        changes = await site.server.reload()
        assert changes == [
            "tscf-interface access: assigned-services: SIP -> SIP, DDT (for newly established tunnels)"
        ]
        new = await site.up()
        assert await ddt_available(new) is True
        assert await ddt_available(old) is False
        inner = old.socket()
        inner.send(b"untouched", "10.64.0.1", 7)
        await inner.heard(b"untouched")


async def test_pools_hold_for_new_tunnels_and_no_address_is_leased_twice(
    certificates_folder: Path, file: Path
) -> None:
    async with running(certificates_folder, load(file)) as site:
        old = await site.up()
        edit(file, ("10.64.1.0/24", "10.64.2.0/24"))
        await site.server.reload()
        new = await site.up()
        assert new.inner[0].startswith("10.64.2.")
        edit(file, ("10.64.2.0/24", "10.64.1.0/24"))
        await site.server.reload()
        third = await site.up()
        assert len({old.inner[0], new.inner[0], third.inner[0]}) == 3, (
            "the range came back, the lease is known"
        )
        assert old.session.state is State.ACTIVE


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[tscf-interface.access]", "[tscf-interface.access", "server.toml:"),
        ('realm = "core"', 'realm = "nowhere"', "there is no realm 'nowhere'"),
        ("server.pem", "missing.pem", "No such file or directory"),
        ("server.key", "ca.key", "this is not the key of"),
        ("anonymous = true", 'methods = ["password"]\npassword-file = "none"', "none"),
        ('["10.64.1.0/24"', '["10.99.1.0/24"', "10.64.0.0/16"),
    ],
)
async def test_a_bad_file_changes_nothing_and_says_why(
    certificates_folder: Path, file: Path, old: str, new: str, says: str
) -> None:
    async with running(certificates_folder, load(file)) as site:
        before, offers = site.server.settings, site.server.hub.offers
        edit(file, (old, new), ('["SIP"]', '["SIP", "DDT"]'))
        assert await site.server.reload() == []
        assert says in site.server.reload_error
        assert (site.server.settings, site.server.hub.offers) == (before, offers)
        assert any("The last reload changed nothing" in one for one in standing(site))
        assert await ddt_available(await site.up()) is False
        write(file, configuration(certificates_folder, realm="echo = 7"))
        await site.server.reload()
        assert site.server.reload_error == ""
        assert not standing(site)


def standing(site: Site) -> list[str]:
    return warnings(site.server.facts())


async def test_what_needs_a_restart_is_kept_and_said(certificates_folder: Path, file: Path) -> None:
    async with running(certificates_folder, load(file)) as site:
        number = site.server.port()
        changes = ("port = 0", "port = 4444"), ("[server]", "[server]\nworkers = 2"), ("echo = 7", "echo = 9")
        edit(file, *changes)
        assert await site.server.reload() == ["realm core: echo: 7 -> 9 (at once)"]
        assert site.server.port() == number
        assert list(site.server.waiting) == [
            "server: workers: 1 -> 2 (after a restart)",
            "tscf-port v4: port: 0 -> 4444 (after a restart)",
        ]
        inner = (await site.up()).socket()
        inner.send(b"there", "10.64.0.1", 9)
        assert (await inner.heard(b"there"))[1] == ("10.64.0.1", 9)
        assert any("wait for a restart" in one for one in standing(site))


async def test_routes_and_policies_change_at_once(certificates_folder: Path, file: Path) -> None:
    async with running(certificates_folder, load(file)) as site:
        inner = (await site.up()).socket()
        inner.send(b"open", "10.64.0.1", 7)
        await inner.heard(b"open")
        text = configuration(
            certificates_folder,
            realm="echo = 7",
            pool='protocol-policies = "no"',
            more='[tscf-protocol-policy.no]\ndestination = "10.64.0.1"\naction = "deny"',
        )
        write(file, text)
        await site.server.reload()
        inner.send(b"closed", "10.64.0.1", 7)
        await until(lambda: site.counter("drop_inner_policy_denied") == 1)


async def test_a_renewed_certificate_is_taken_up_by_itself(certificates_folder: Path, tmp_path: Path) -> None:
    """Nobody touches the configuration: certbot has replaced the files."""
    folder = tmp_path / "certificates"
    shutil.copytree(certificates_folder, folder)
    file = tmp_path / "server.toml"
    write(file, configuration(folder))
    async with running(folder, load(file)) as site:
        await site.up()
        authority = certificates.load_authority(folder)
        renewed = certificates.issue_server(
            authority, datetime.now(UTC), names=["localhost"], addresses=[ip_address("127.0.0.1")]
        )
        certificates.write(renewed, folder, "server", force=True)
        profile = site.server.settings.tls_profiles["main"]
        before = site.server.tls.profile(profile)
        pinned = site.plane.core.client_tls(
            ca_pem=(folder / "ca.pem").read_bytes(), pin_sha256=bytes.fromhex(renewed.pin)
        )
        assert (await site.client(profile=pinned).connect()).session.state is State.CLOSED
        await until(lambda: site.server.tls.profile(profile) != before, "the new certificate")
        await site.up(profile=pinned)


async def test_a_change_of_the_file_is_seen(certificates_folder: Path, file: Path) -> None:
    async with running(certificates_folder, load(file)) as site:
        edit(file, ('["SIP"]', '["SIP", "DDT"]'))
        await until(lambda: len(site.server.settings.interfaces["access"].assigned_services) == 2, "the file")


async def test_signals(certificates_folder: Path, file: Path) -> None:
    server = Server(load(file))
    started = asyncio.Event()
    work = asyncio.ensure_future(server.run(on_start=started.set))
    await started.wait()
    at = server.reloaded_at
    server.reloaded_at = ""
    os.kill(os.getpid(), signal.SIGHUP)
    await until(lambda: server.reloaded_at >= at, "reloaded")
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(work, 20)
    assert server.listeners.opened == server.listeners.closed == 2


# -- pieces -----------------------------------------------------------------------------------------------


def test_every_setting_that_needs_a_restart_is_kept(certificates_folder: Path) -> None:
    """The schema is the authority; merge() must not have an opinion of its own."""
    root = Path(__file__).parents[3]
    running_settings = loads((root / "examples/server.toml").read_text())
    changed = (
        (root / "examples/server.toml")
        .read_text()
        .replace("workers = 2", "workers = 3")
        .replace('user = "opentsm"', 'user = "other"')
        .replace("/run/opentsm/admin.sock", "/run/other.sock")
        .replace('tun = "tsm0"', 'tun = "tsm1"')
        .replace('"10.64.0.1/16", ', '"10.64.0.9/16", ')
        .replace("port = 443", "port = 444")
        .replace('ports = ["v4", "v6"]', 'ports = ["v4"]')
    )
    new = loads(changed)
    merged = merge(running_settings, new)
    for kind in OBJECTS:
        for field in (field for field in kind.fields if field.effect is Effect.RESTART):
            for name, before in objects(running_settings, kind.attr, named=kind.named).items():
                kept = objects(merged, kind.attr, named=kind.named)[name]
                assert names(getattr(kept, field.attribute)) == names(getattr(before, field.attribute)), (
                    field.key
                )


def objects(settings: object, attribute: str, *, named: bool) -> dict[str, object]:
    held = getattr(settings, attribute)
    return held if named else {"": held}


def names(value: object) -> object:
    """Objects by name: what they refer to may have changed."""
    if isinstance(value, tuple):
        return tuple(names(one) for one in value)
    return getattr(value, "name", value)


def test_old_and_new_that_do_not_fit_together_are_refused(certificates_folder: Path) -> None:
    """The new pool only fits the new prefix, and that waits for a restart."""
    text = configuration(certificates_folder)
    old = loads(text)
    new = loads(text.replace("10.64.0.1/16", "10.65.0.1/16").replace("10.64.1.0/24", "10.65.1.0/24"))
    with pytest.raises(ConfigError, match="what needs a restart"):
        merge(old, new)


def test_a_change_counts_when_it_has_come_to_rest(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("a")
    watch = Watch(signature([path]))
    assert not watch.look(signature([path]))
    path.write_text("ab")
    half = signature([path])
    assert not watch.look(half), "it may still be written"
    path.write_text("abc")
    done = signature([path])
    assert not watch.look(done)
    assert watch.look(done)
    assert not watch.look(done), "it counts once"
    path.unlink()
    assert signature([path]) == (None,)
