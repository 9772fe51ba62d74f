"""Which settings a running server can have: the new ones, but for what needs a restart.

The schema says of each setting when a change of it counts; this is what it says of those that have to wait.
"""

from __future__ import annotations

from dataclasses import replace

from opentsm.config.check import Lines, check
from opentsm.config.errors import Problems
from opentsm.config.model import Interface, Port, Realm, Settings


def merge(running: Settings, new: Settings) -> Settings:
    """The new settings with the running ones' sockets, devices and process.

    Raises:
        ConfigError: old and new do not fit together; only a restart can make this change.
    """
    realms = {name: _realm(old, new.realms.get(name)) for name, old in running.realms.items()}
    ports = {name: _port(old, new.ports.get(name)) for name, old in running.ports.items()}
    interfaces = {
        name: _interface(old, new.interfaces.get(name), realms, ports)
        for name, old in running.interfaces.items()
    }
    # An interface that the file no longer has serves on until the restart, with what it refers to.
    kept_pools = {pool.name: pool for one in interfaces.values() for pool in one.address_pools}
    kept_profiles = {p.tls_profile.name: p.tls_profile for p in ports.values() if p.tls_profile is not None}
    sbcs = {name: replace(sbc, realm=realms[sbc.realm.name]) for name, sbc in running.sbcs.items()}
    merged = replace(
        new,
        server=replace(
            new.server,
            workers=running.server.workers,
            user=running.server.user,
            admin_socket=running.server.admin_socket,
            store=running.server.store,
        ),
        realms=realms,
        sbcs=sbcs,
        trunks={name: replace(trunk, sbc=sbcs[trunk.sbc.name]) for name, trunk in running.trunks.items()},
        ports=ports,
        interfaces=interfaces,
        address_pools=new.address_pools | kept_pools,
        tls_profiles=new.tls_profiles | kept_profiles,
    )
    problems = Problems(f"{new.source} (together with what needs a restart to change)")
    check(merged, Lines(), problems)
    problems.raise_any()
    return merged


def _realm(old: Realm, new: Realm | None) -> Realm:
    return old if new is None else replace(old, routes=new.routes, echo=new.echo)


def _port(old: Port, new: Port | None) -> Port:
    profile = None if new is None else new.tls_profile
    return old if profile is None or old.tls_profile is None else replace(old, tls_profile=profile)


def _interface(
    old: Interface, new: Interface | None, realms: dict[str, Realm], ports: dict[str, Port]
) -> Interface:
    changed = old if new is None else new
    return replace(
        changed,
        realm=realms[old.realm.name],
        ports=tuple(ports[port.name] for port in old.ports),
        plain_transports=changed.plain_transports or old.plain_transports,
    )
