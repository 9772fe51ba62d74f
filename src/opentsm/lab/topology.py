"""A lab: hosts in namespaces, the links between them, and their orderly end.

phones - lan0 [firewall S] wan0 == emulator == siteS [internet] srvN - wan0 [server N] core0 - [core]
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from opentsm.errors import LocalProtocolError, PlatformError
from opentsm.lab import registry
from opentsm.lab.firewall import Firewall, everything
from opentsm.lab.host import Host
from opentsm.lab.impairment import DIRECTIONS, Settings
from opentsm.lab.netns import iproute, iproute_batch, sysctl
from opentsm.lab.plan import Interface, Plan, server_name
from opentsm.lab.privileges import in_user_namespace, skip_reason
from opentsm.lab.registry import LabRecord
from opentsm.lab.wan import TX_QUEUE, EmulatorProcess, Wan, WanEnd, start_emulator

_ROUTER_SETTINGS = (("net.ipv4.ip_forward", 1), ("net.ipv6.conf.all.forwarding", 1))


@dataclass(frozen=True, slots=True)
class LabSpec:
    """The shape of a lab.

    Args:
        sites: networks with a firewall and a WAN of their own.
        phones: per site; numbered through all sites from 1.
        servers: each with its own link to the internet and to the core.
        nat: IPv4 masquerade at every firewall. IPv6 is routed either way.
        ipv4, ipv6: address families that exist.
        emulate: False makes the WAN a plain veth pair, for benchmarks.
        seed: of the WAN emulators (site s has seed + s - 1).
        wan: impairment to begin with, in both directions of every site.
    """

    sites: int = 1
    phones: int = 1
    servers: int = 1
    nat: bool = True
    ipv4: bool = True
    ipv6: bool = True
    emulate: bool = True
    seed: int = 1
    wan: Settings = field(default_factory=Settings)


class Lab:
    """A lab. ``with Lab(LabSpec(...)) as lab: ...`` or ``start`` and ``close``.

    Whatever happens inside, ``close`` ends every process inside its hosts and removes every
    namespace; if even this process is killed, ``opentsm lab clean`` does.

    Args:
        spec: its shape.
    """

    def __init__(self, spec: LabSpec | None = None) -> None:
        self.spec = spec if spec is not None else LabSpec()
        self.plan = Plan(self.spec.sites, self.spec.phones, self.spec.servers, self.spec.ipv4, self.spec.ipv6)
        self.id = ""
        self._hosts: dict[str, Host] = {}
        self._firewalls: dict[int, Firewall] = {}
        self._emulators: dict[int, EmulatorProcess] = {}
        self._sites_of_phones: dict[int, int] = {}

    # -- life -----------------------------------------------------------------------------------------
    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def start(self) -> None:
        """Make everything; on failure nothing is left behind.

        Raises:
            PlatformError: this machine or process cannot; the message says what to do.
        """
        if self.id:
            raise LocalProtocolError("this lab is already up")
        reason = skip_reason()
        if reason is not None:
            raise PlatformError(f"a lab cannot be made here: {reason}")
        self.id = registry.new_lab_id()
        atexit.register(self.close)
        try:
            registry.write_record(self._record())
            self._make_hosts()
            self._make_links()
            self._make_firewalls()
            registry.write_record(self._record())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all processes and remove all namespaces. May be called again."""
        if not self.id:
            return
        owner = int(self.id.split("-")[1])
        if owner != os.getpid():
            return  # a forked child must not take its parent's lab down
        for host in self._hosts.values():
            host.stop_processes()
        for emulator in self._emulators.values():
            emulator.stop()
        for host in self._hosts.values():
            with contextlib.suppress(PlatformError):
                registry.remove_namespace(host.namespace)
        shutil.rmtree(registry.lab_directory(self.id), ignore_errors=True)
        self._hosts.clear()
        self._emulators.clear()
        self._firewalls.clear()
        self.id = ""
        atexit.unregister(self.close)

    # -- parts ----------------------------------------------------------------------------------------
    @property
    def hosts(self) -> Mapping[str, Host]:
        """phone1..., firewall1..., internet, server, server2..., core."""
        return self._hosts

    def __getitem__(self, name: str) -> Host:
        try:
            return self._hosts[name]
        except KeyError:
            raise KeyError(
                f"no host {name}; there are {', '.join(self._hosts) or 'none: the lab is down'}"
            ) from None

    def firewall(self, site: int = 1) -> Firewall:
        """The firewall of a site."""
        return self._firewalls[site]

    def wan(self, site: int = 1) -> Wan:
        """The emulated WAN of a site.

        Raises:
            LocalProtocolError: the lab was made with ``emulate=False``.
        """
        if site not in self._emulators:
            raise LocalProtocolError(f"site {site} has no emulator: was the lab made with emulate=True?")
        return self._emulators[site].wan

    def site_of(self, phone: int) -> int:
        """Where a phone is now."""
        return self._sites_of_phones[phone]

    def rehome(self, phone: int, site: int) -> None:
        """Move a phone to another site's network: new address, new gateway, old ones gone at once.

        What a phone that walks out of its Wi-Fi does; its sockets live on, their addresses do not.
        """
        host = self[f"phone{phone}"]
        host.ip("link", "del", "eth0")
        self._plug_phone(phone, site)

    def second_uplink(self, phone: int, site: int) -> None:
        """Give a phone another interface, eth1, in another site's network; its default route stays.

        What a phone with Wi-Fi does when mobile data comes up.
        """
        address, gateway = self._connect_phone(phone, site, "eth1")
        lines = ["link set eth1 up", *_address_lines("eth1", address)]
        lines += [f"{line} dev eth1 metric 2000" for line in _default_lines(gateway)]
        iproute_batch(lines, namespace=self[f"phone{phone}"].namespace)

    def prefer_second_uplink(self, phone: int, *, keep_first: bool) -> None:
        """The phone's default routes go by eth1 from now on; the addresses of eth0 stay.

        Args:
            keep_first: what has an address of eth0 keeps using it, as phones' systems arrange it; else its
                packets leave by eth1 and are lost.
        """
        host, gateway = self[f"phone{phone}"], self.plan.lan(self._sites_of_phones[phone])
        for family, address, way in (("-4", host.ipv4, gateway.ipv4), ("-6", host.ipv6, gateway.ipv6)):
            if not address:
                continue
            if keep_first:
                host.ip(family, "route", "add", "default", "via", way, "dev", "eth0", "table", "100")
                host.ip(family, "rule", "add", "from", address, "lookup", "100")
            host.ip(family, "route", "del", "default", "dev", "eth0")

    # -- making ---------------------------------------------------------------------------------------
    def _make_hosts(self) -> None:
        plan = self.plan
        for phone in range(1, plan.phones + 1):
            self._make_host(f"phone{phone}", plan.phone(phone))
        for site in range(1, plan.sites + 1):
            self._make_host(f"firewall{site}", plan.wan(site), router=True)
        self._make_host("internet", plan.internet(1), router=True)
        for server in range(1, plan.servers + 1):
            self._make_host(server_name(server), plan.server(server), router=True)
        self._make_host("core", plan.core(1))

    def _make_host(self, name: str, main: Interface, *, router: bool = False) -> None:
        namespace = f"{self.id}-{name}"
        iproute("netns", "add", namespace)
        self._hosts[name] = Host(name, namespace, main)
        # No duplicate address detection and no router solicitation: links are ready when they are up.
        for setting, value in (
            ("net.ipv6.conf.default.accept_dad", 0),
            ("net.ipv6.conf.all.accept_dad", 0),
            ("net.ipv6.conf.default.accept_ra", 0),
            ("net.ipv6.conf.default.router_solicitations", 0),
            *(_ROUTER_SETTINGS if router else ()),
        ):
            with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
                sysctl(namespace, setting, value)
        iproute_batch(["link set lo up"], namespace=namespace)

    def _make_links(self) -> None:
        for site in range(1, self.plan.sites + 1):
            self._make_lan(site)
            self._make_wan(site)
        for server in range(1, self.plan.servers + 1):
            self._make_server_links(server)
        for phone in range(1, self.plan.phones + 1):
            self._plug_phone(phone, self.plan.site_of(phone))

    def _make_lan(self, site: int) -> None:
        namespace = self[f"firewall{site}"].namespace
        lines = ["link add lan0 type bridge", "link set lan0 up"]
        lines += _address_lines("lan0", self.plan.lan(site))
        iproute_batch(lines, namespace=namespace)

    def _plug_phone(self, phone: int, site: int) -> None:
        host = self[f"phone{phone}"]
        address, gateway = self._connect_phone(phone, site, "eth0")
        lines = ["link set eth0 up", *_address_lines("eth0", address), *_default_lines(gateway)]
        iproute_batch(lines, namespace=host.namespace)
        host.ipv4, host.ipv6 = address.ipv4, address.ipv6
        self._sites_of_phones[phone] = site

    def _connect_phone(self, phone: int, site: int, device: str) -> tuple[Interface, Interface]:
        """A cable from the phone to the site's switch; its addresses there, and its gateway's."""
        firewall, host = self[f"firewall{site}"], self[f"phone{phone}"]
        port = f"port{phone}"
        _veth(firewall, port, host, device)
        iproute_batch([f"link set {port} master lan0 up"], namespace=firewall.namespace)
        return self.plan.phone(phone, site), self.plan.lan(site)

    def _make_wan(self, site: int) -> None:
        firewall, internet = self[f"firewall{site}"], self["internet"]
        near, far = self.plan.wan(site), self.plan.internet(site)
        device = f"site{site}"
        extra = ""
        if self.spec.emulate:
            self._start_emulator(
                site, WanEnd(firewall.namespace, "wan0", near), WanEnd(internet.namespace, device, far)
            )
            extra = f" txqueuelen {TX_QUEUE}"
        else:
            _veth(firewall, "wan0", internet, device)
        lines = [f"link set wan0 up{extra}", *_address_lines("wan0", near), *_default_lines(far)]
        iproute_batch(lines, namespace=firewall.namespace)
        lines = [f"link set {device} up{extra}", *_address_lines(device, far)]
        lines += self._routes_to_lan(site, near)
        iproute_batch(lines, namespace=internet.namespace)

    def _routes_to_lan(self, site: int, near: Interface) -> list[str]:
        """The internet knows the phones' IPv6 prefix, and without NAT their IPv4 prefix as well."""
        prefixes = [p for p in self.plan.lan_prefixes(site) if ":" in p or not self.spec.nat]
        return [f"route add {p} via {near.ipv6 if ':' in p else near.ipv4}" for p in prefixes]

    def _start_emulator(self, site: int, near: WanEnd, far: WanEnd) -> None:
        control = registry.lab_directory(self.id) / f"wan{site}.sock"
        settings = dict.fromkeys(DIRECTIONS, self.spec.wan)
        seed = self.spec.seed + site - 1
        self._emulators[site] = start_emulator(near, far, control, seed=seed, settings=settings)

    def _make_server_links(self, number: int) -> None:
        plan, internet, core = self.plan, self["internet"], self["core"]
        server = self[server_name(number)]
        _veth(internet, f"srv{number}", server, "wan0")
        _veth(server, "core0", core, f"srv{number}")
        internet_lines = [
            f"link set srv{number} up",
            *_address_lines(f"srv{number}", plan.server_gateway(number)),
        ]
        iproute_batch(internet_lines, namespace=internet.namespace)
        lines = ["link set wan0 up", "link set core0 up"]
        lines += _address_lines("wan0", plan.server(number)) + _default_lines(plan.server_gateway(number))
        lines += _address_lines("core0", plan.core_gateway(number))
        iproute_batch(lines, namespace=server.namespace)
        core_lines = [f"link set srv{number} up", *_address_lines(f"srv{number}", plan.core(number))]
        if number == 1:
            core_lines += _default_lines(plan.core_gateway(1))
        iproute_batch(core_lines, namespace=core.namespace)

    def _make_firewalls(self) -> None:
        for site in range(1, self.plan.sites + 1):
            firewall = Firewall(self[f"firewall{site}"].namespace)
            self._firewalls[site] = firewall
            firewall.apply(everything())
            firewall.masquerade(self.spec.nat and self.spec.ipv4)

    def _record(self) -> LabRecord:
        hosts = self._hosts.values()
        return LabRecord(
            lab=self.id,
            pid=os.getpid(),
            rootless=in_user_namespace(),
            hosts={host.name: host.namespace for host in hosts},
            addresses={host.name: [a for a in (host.ipv4, host.ipv6) if a] for host in hosts},
            sites=self.spec.sites,
            emulated=self.spec.emulate,
        )


def _veth(one: Host, one_device: str, other: Host, other_device: str) -> None:
    iproute(
        *("link", "add", one_device, "netns", one.namespace, "type", "veth"),
        *("peer", "name", other_device, "netns", other.namespace),
    )


def _address_lines(device: str, interface: Interface) -> list[str]:
    return [
        f"address add {address} dev {device}{' nodad' if ':' in address else ''}"
        for address in interface.with_prefix
    ]


def _default_lines(gateway: Interface) -> list[str]:
    return [f"route add default via {address}" for address in (gateway.ipv4, gateway.ipv6) if address]
