"""The one table of every object and setting: it drives reading, checking, the reference
(docs/configuration.md), the XML schema (docs/opentsm.xsd) and what a reload may change.

Objects come in the order in which they can be built: what an object refers to stands above it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from opentsm.config import kinds, model
from opentsm.config.kinds import Kind
from opentsm.engine.policy import TRANSPORTS, PolicyAction
from opentsm.engine.services import DEFAULT_SERVICES, format_services
from opentsm.limits import (
    KEEPALIVE_TIMER_DATAGRAM,
    KEEPALIVE_TIMER_STREAM,
    MAX_TUNNELS_PER_INTERFACE,
    TUNNEL_PERSISTENCE_TIME,
)
from opentsm.types import Transport

_MAX_RATE: Final = 122070 * 1024
_MAX_WORKERS: Final = 64


class Effect(enum.Enum):
    """When a changed setting takes effect."""

    LIVE = "at once"
    NEW_TUNNELS = "for newly established tunnels"
    RESTART = "after a restart"


@dataclass(frozen=True, slots=True)
class Field:
    """One setting.

    Attributes:
        key: its name in a file. attr: its name in the model (default: ``key`` with underscores).
        kind: what it may be. default: as it would be written; None: nothing, or an empty list.
        required: it has no default and must be there.
        effect: when a reload makes a change of it count.
    """

    key: str
    kind: Kind
    doc: str
    default: str | None = None
    required: bool = False
    effect: Effect = Effect.NEW_TUNNELS
    attr: str = ""

    @property
    def attribute(self) -> str:
        return self.attr or self.key.replace("-", "_")


@dataclass(frozen=True, slots=True)
class ObjectType:
    """One kind of object.

    Attributes:
        key: table or element name. target: the model class. named: whether there can be several.
        attr: attribute of ``Settings`` that holds it. presence: effect of adding or removing one.
    """

    key: str
    target: type
    attr: str
    doc: str
    fields: tuple[Field, ...]
    named: bool = True
    presence: Effect = Effect.NEW_TUNNELS

    def field(self, key: str) -> Field | None:
        return next((field for field in self.fields if field.key == key), None)


SERVER: Final = ObjectType(
    "server",
    model.ServerSettings,
    "server",
    "The process itself.",
    (
        Field(
            "workers",
            kinds.count(1, _MAX_WORKERS),
            "User-plane threads; one per core that may carry packets.",
            default="1",
            effect=Effect.RESTART,
        ),
        Field(
            "user",
            kinds.text('an account name, or "" to stay', r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", or_empty=True),
            "Account to become once listeners and TUN devices are open.",
            effect=Effect.RESTART,
        ),
        Field(
            "admin-socket",
            kinds.path(or_empty=True),
            "Unix socket on which `opentsm status` and other commands reach the running server.",
            default="/run/opentsm/admin.sock",
            effect=Effect.RESTART,
        ),
        Field(
            "log-level",
            kinds.choice(model.LogLevel),
            "Least severe log line written.",
            default="info",
            effect=Effect.LIVE,
        ),
        Field(
            "log-format",
            kinds.choice(model.LogFormat),
            "Log lines for people or, one JSON object each, for programs.",
            default="text",
            effect=Effect.LIVE,
        ),
        Field(
            "data-log",
            kinds.path(or_empty=True),
            "File for control messages (JSON lines) of the interfaces whose `control-log` is on.",
            effect=Effect.LIVE,
        ),
        Field(
            "store",
            kinds.path(or_empty=True),
            "SQLite file that keeps sessions over a restart, so that clients come back to their inner "
            "addresses and calls go on. Not set: `server.db` in the directory that systemd names in "
            "STATE_DIRECTORY, else none.",
            effect=Effect.RESTART,
        ),
    ),
    named=False,
)

TIMERS: Final = ObjectType(
    "timers",
    model.Timers,
    "timers",
    "The life of a tunnel: active, persistent, closed.",
    (
        Field(
            "keepalive-timer",
            kinds.duration(30, 660),
            "Silence after which a stream tunnel turns from active to persistent; 0 never does.",
            default=f"{KEEPALIVE_TIMER_STREAM:g} s",
        ),
        Field(
            "keepalive-timer-datagram",
            kinds.duration(30, 660),
            "The same for datagram tunnels. Off, because a datagram tunnel in use is probed anyway.",
            default=f"{KEEPALIVE_TIMER_DATAGRAM:g} s",
        ),
        Field(
            "tunnel-persistence-time",
            kinds.duration(10, 700),
            "How long a persistent tunnel keeps its address and flows for a client that comes back; "
            "0 closes it at once.",
            default=f"{TUNNEL_PERSISTENCE_TIME:g} s",
        ),
    ),
    named=False,
)

AUTHENTICATION: Final = ObjectType(
    "authentication",
    model.Authentication,
    "authentication",
    "How clients prove who they are. Nobody gets an address before that.",
    (
        Field(
            "methods",
            kinds.many(kinds.choice(model.AuthMethod)),
            "Ways to authenticate, tried in this order.",
        ),
        Field("password-file", kinds.path(), "File of user names and argon2 hashes, for method `password`."),
        Field("token-file", kinds.path(), "File of bearer tokens, hashed, for method `token`."),
        Field(
            "plugins",
            kinds.many(kinds.PLUGIN),
            "Further ways, by entry point of group `opentsm.authenticators`, tried after the methods.",
        ),
        Field(
            "plugin-options",
            kinds.many(kinds.text("PLUGIN.KEY=VALUE", r"[A-Za-z0-9][A-Za-z0-9_-]*\.[A-Za-z0-9_-]+=.*")),
            'Options of plug-ins, each as `"PLUGIN.KEY=VALUE"`.',
        ),
        Field("anonymous", kinds.switch(), "Let anybody in without proof. For laboratories.", default="off"),
    ),
    named=False,
)

REALM: Final = ObjectType(
    "realm",
    model.Realm,
    "realms",
    "A core network: where inner packets go when they leave the tunnels.",
    (
        Field(
            "core",
            kinds.choice(model.CoreSide),
            "`tun`: a TUN device and the kernel's routing (needs CAP_NET_ADMIN). `userspace`: the server's "
            "own UDP sockets, no privileges. `none`: clients reach only each other and the server.",
            required=True,
            effect=Effect.RESTART,
        ),
        Field(
            "tun",
            kinds.text("a device name of at most 15 characters", r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}"),
            "TUN device to make or, if it exists, to use; with core `tun` only.",
            effect=Effect.RESTART,
        ),
        Field(
            "addresses",
            kinds.many(kinds.INTERFACE_ADDRESS),
            "The server's own inner addresses, each with the prefix that its clients are in. They are "
            "never leased.",
            effect=Effect.RESTART,
        ),
        Field(
            "routes",
            kinds.many(kinds.NETWORK),
            "Destinations that leave on the core side. Empty: with `tun` all, with `userspace` none.",
            effect=Effect.LIVE,
        ),
        Field(
            "echo",
            kinds.port(zero_means="off"),
            "UDP and TCP port on the server's own inner addresses that sends back what comes, for "
            "`opentsm connect` and test calls (7 is the well-known one).",
            default="0",
            effect=Effect.LIVE,
        ),
    ),
    presence=Effect.RESTART,
)

SBC: Final = ObjectType(
    "sbc",
    model.Sbc,
    "sbcs",
    "The embedded SBC of a realm (at most one): registrar, proxy and media relay for calls between tunnelled "
    "clients, and between them and the server's own network; see [sbc.md](sbc.md).",
    (
        Field(
            "realm",
            kinds.reference("realm"),
            "Realm whose clients it serves.",
            required=True,
            effect=Effect.RESTART,
        ),
        Field(
            "domain",
            kinds.text(
                "a SIP domain, as in sip:alice@DOMAIN", r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?"
            ),
            "SIP domain served, and realm of SIP passwords.",
            required=True,
            effect=Effect.RESTART,
        ),
        Field(
            "address",
            kinds.ADDRESS,
            "Inner address it answers on, within the realm's prefixes and outside of all pools. With core "
            "`tun` it must not be one of the realm's own addresses, which are the kernel's.",
            required=True,
            effect=Effect.RESTART,
        ),
        Field(
            "address6",
            kinds.ADDRESS,
            "A second inner address of the other family, under the same conditions.",
            effect=Effect.RESTART,
        ),
        Field(
            "port",
            kinds.count(1, 65535),
            "Inner port of SIP, UDP and TCP.",
            default="5060",
            effect=Effect.RESTART,
        ),
        Field(
            "users-file",
            kinds.path(),
            "SIP accounts, hashed, as `htdigest` writes them with the domain as its realm.",
            required=True,
            effect=Effect.RESTART,
        ),
        Field(
            "media-ports",
            kinds.PORT_RANGE,
            "Inner ports of relayed media; four for each stream of a call.",
            default="20000-39999",
            effect=Effect.RESTART,
        ),
        Field(
            "anchoring",
            kinds.switch(),
            "Relay media through the user plane. Off: parties send to each other, and nothing is measured.",
            default="on",
            effect=Effect.RESTART,
        ),
        Field(
            "cdr-file",
            kinds.path(or_empty=True),
            "File to which each call's record is appended (JSON lines).",
            effect=Effect.RESTART,
        ),
        Field(
            "database",
            kinds.path(or_empty=True),
            "SQLite file that keeps registrations, answered calls and call records over a restart; without "
            "it they are kept in memory.",
            effect=Effect.RESTART,
        ),
        Field(
            "core-address",
            kinds.ADDRESS,
            "Address of this machine at which trunks and phones on the server's own network reach the SBC, "
            "and it them, by the kernel's sockets. Without it: no such calls, unless the realm's core is "
            "`tun`, where the kernel routes them to `address`.",
            effect=Effect.RESTART,
        ),
        Field(
            "core-port",
            kinds.count(1, 65535),
            "Port of SIP there.",
            default="5060",
            effect=Effect.RESTART,
        ),
        Field(
            "core-transports",
            kinds.many(kinds.word(("udp", "tcp"))),
            "Transports of SIP there.",
            default="udp, tcp",
            effect=Effect.RESTART,
        ),
        Field(
            "core-media-ports",
            kinds.PORT_RANGE,
            "UDP ports of relayed media there; two for each stream of a call.",
            default="40000-49999",
            effect=Effect.RESTART,
        ),
        Field(
            "core-phones",
            kinds.many(kinds.NETWORK),
            "Prefixes from which phones on the server's own network may register with a SIP password.",
            effect=Effect.RESTART,
        ),
    ),
    presence=Effect.RESTART,
)

TRUNK: Final = ObjectType(
    "trunk",
    model.Trunk,
    "trunks",
    "A SIP neighbour of an SBC on the server's own network: a trunk, a PBX, another SIP server, or a phone.",
    (
        Field(
            "sbc", kinds.reference("sbc"), "SBC whose neighbour it is.", required=True, effect=Effect.RESTART
        ),
        Field("address", kinds.ADDRESS, "Where requests to it go.", required=True, effect=Effect.RESTART),
        Field("port", kinds.count(1, 65535), "Port of SIP there.", default="5060", effect=Effect.RESTART),
        Field(
            "transport",
            kinds.word(("udp", "tcp")),
            "Transport of requests to it; it may use either.",
            default="udp",
            effect=Effect.RESTART,
        ),
        Field(
            "sources",
            kinds.many(kinds.NETWORK),
            "Addresses and prefixes that count as this neighbour when they send; none: `address` alone.",
            effect=Effect.RESTART,
        ),
        Field(
            "domains",
            kinds.many(kinds.text("a domain, or * for all others", r"\*|[A-Za-z0-9.:\[\]-]{1,253}")),
            "Foreign domains whose requests go there.",
            effect=Effect.RESTART,
        ),
        Field(
            "numbers",
            kinds.many(
                kinds.text("the beginning of a number or name, or * for all", r"\*|[^\s@;<>\"]{1,64}")
            ),
            "Beginnings of numbers and names that go there when no account has them; the longest wins.",
            effect=Effect.RESTART,
        ),
        Field(
            "calls-in",
            kinds.switch(),
            "Whether it may call registered users.",
            default="on",
            effect=Effect.RESTART,
        ),
        Field(
            "username",
            kinds.text("a name", r"[^\s\"\\]{1,128}"),
            "Name of our account there, to answer its challenges with.",
            effect=Effect.RESTART,
        ),
        Field(
            "password-file",
            kinds.path(),
            "File with the password of that account on its first line.",
            effect=Effect.RESTART,
        ),
    ),
    presence=Effect.RESTART,
)

TLS_PROFILE: Final = ObjectType(
    "tls-profile",
    model.TlsProfile,
    "tls_profiles",
    "Certificates and TLS settings of a port. The files are read again at each reload.",
    (
        Field("certificate", kinds.path(), "The server's certificate and its chain (PEM).", required=True),
        Field("key", kinds.path(), "Its private key (PEM).", required=True),
        Field("client-ca", kinds.path(), "Authorities that client certificates must come from (PEM)."),
        Field(
            "client-auth",
            kinds.choice(model.ClientAuth),
            "Whether clients are asked for a certificate, and whether one without is turned away.",
            default="none",
        ),
        Field("tls12", kinds.switch(), "Also accept TLS 1.2; off leaves only 1.3.", default="on"),
    ),
)

PORT: Final = ObjectType(
    "tscf-port",
    model.Port,
    "ports",
    "One address and number to listen on. A `tls` port opens DTLS on the same number by itself, a `tcp` "
    "port UDP: also while DDT is not assigned, so that a reload can assign it.",
    (
        Field(
            "address",
            kinds.ADDRESS,
            "Address to listen on; 0.0.0.0 or :: for all of its family.",
            required=True,
            effect=Effect.RESTART,
        ),
        Field(
            "port",
            kinds.port(zero_means="the system picks one"),
            "Port number.",
            default="443",
            effect=Effect.RESTART,
        ),
        Field(
            "transport-protocol",
            kinds.choice(Transport),
            "What is spoken there. `tcp` and `udp` are not encrypted and need `plain-transports` on the "
            "interface.",
            default="tls",
            effect=Effect.RESTART,
            attr="transport",
        ),
        Field(
            "tls-profile",
            kinds.reference("tls-profile"),
            "Certificates of a `tls` port, and of no other: a "
            "datagram tunnel is keyed from its client's TLS session.",
        ),
        Field(
            "congestion-control",
            kinds.text("a name such as bbr or cubic", r"[a-z][a-z0-9_]{0,14}", or_empty=True),
            "TCP congestion control of its streams. Empty: the kernel's default. Without privileges only "
            "those of net.ipv4.tcp_allowed_congestion_control can be had; a refusal is logged, and the "
            "default stays.",
            default="",
            effect=Effect.RESTART,
        ),
    ),
    presence=Effect.RESTART,
)

DATA_FLOW: Final = ObjectType(
    "tscf-data-flow",
    model.DataFlow,
    "data_flows",
    "Rate limits for the clients of a pool.",
    (
        Field("realm", kinds.reference("realm"), "Realm whose traffic is limited; empty: all."),
        Field(
            "upstream-rate",
            kinds.rate(_MAX_RATE, "122070 KB/s"),
            "Most that a group may send.",
            default="0",
            effect=Effect.LIVE,
        ),
        Field(
            "downstream-rate",
            kinds.rate(_MAX_RATE, "122070 KB/s"),
            "Most that a group may receive.",
            default="0",
            effect=Effect.LIVE,
        ),
        Field(
            "group-size",
            kinds.count_of([1, 2, 4, 8, 16, 32, 64, 128, 256]),
            "Addresses that share one limit; the pool is cut into groups of this size. 1: each client by "
            "itself.",
            default="128",
            effect=Effect.LIVE,
        ),
    ),
)

PROTOCOL_POLICY: Final = ObjectType(
    "tscf-protocol-policy",
    model.PolicySettings,
    "protocol_policies",
    "What becomes of inner packets to a destination. The most specific policy counts; without any, a "
    "packet is allowed.",
    (
        Field(
            "destination",
            kinds.NETWORK,
            "Inner destination the policy is about.",
            required=True,
            effect=Effect.LIVE,
        ),
        Field(
            "transport",
            kinds.word(TRANSPORTS),
            "Inner transport; `tls` is the same as `tcp`.",
            default="any",
            effect=Effect.LIVE,
        ),
        Field(
            "port",
            kinds.port(zero_means="any"),
            "Inner destination port; needs a transport.",
            default="0",
            effect=Effect.LIVE,
        ),
        Field(
            "action",
            kinds.choice(PolicyAction),
            "`redirect` rewrites the destination, and back on the way back.",
            default="allow",
            effect=Effect.LIVE,
        ),
        Field(
            "redirect-address",
            kinds.ADDRESS,
            "New destination, of the same address family.",
            effect=Effect.LIVE,
        ),
        Field(
            "redirect-port",
            kinds.port(zero_means="the packet's own"),
            "New port.",
            default="0",
            effect=Effect.LIVE,
        ),
    ),
)

ADDRESS_POOL: Final = ObjectType(
    "tscf-address-pool",
    model.PoolSettings,
    "address_pools",
    "Inner addresses to lease, and what goes with one. Ranges of different pools must not overlap.",
    (
        Field("ranges", kinds.many(kinds.RANGE), "IPv4 and IPv6 ranges, used in this order.", required=True),
        Field("dns", kinds.many(kinds.ADDRESS), "Name servers told to clients."),
        Field("sip-server", kinds.SIP_SERVER, "SIP server told to clients."),
        Field("data-flow", kinds.reference("tscf-data-flow"), "Rate limits of this pool's clients."),
        Field(
            "protocol-policies",
            kinds.references("tscf-protocol-policy"),
            "Policies for this pool's clients.",
            effect=Effect.LIVE,
        ),
    ),
)

INTERFACE: Final = ObjectType(
    "tscf-interface",
    model.Interface,
    "interfaces",
    "Where tunnels arrive, what they get, and where their packets go.",
    (
        Field(
            "state",
            kinds.switch("enabled", "disabled"),
            "A disabled interface turns new tunnels away and keeps the old.",
            default="enabled",
            attr="enabled",
        ),
        Field(
            "realm",
            kinds.reference("realm"),
            "Core network of this interface's clients.",
            required=True,
            effect=Effect.RESTART,
        ),
        Field(
            "ports", kinds.references("tscf-port"), "Where it listens.", required=True, effect=Effect.RESTART
        ),
        Field(
            "address-pools",
            kinds.references("tscf-address-pool"),
            "Pools to lease from, in this order: the next is asked when one is exhausted.",
            required=True,
        ),
        Field(
            "max-tunnels",
            kinds.count(0, MAX_TUNNELS_PER_INTERFACE),
            "Most sessions at once (a session's datagram tunnel does not count); "
            f"0 = {MAX_TUNNELS_PER_INTERFACE}.",
            default="0",
        ),
        Field(
            "assigned-services",
            kinds.services(),
            "Services on offer. DDT is off unless it stands here. With `redundancy` media on the datagram "
            "tunnel carries earlier packets along while packets are lost, with `FEC` so that bursts are "
            "survived; "
            "with `header-compression` UDP headers of 28 bytes become 4.",
            default=format_services(DEFAULT_SERVICES),
        ),
        Field(
            "nagle-state",
            kinds.switch("enabled", "disabled"),
            "Nagle's algorithm on stream tunnels that asked for it (service `nagle`); all others send at "
            "once.",
            default="enabled",
            attr="nagle",
        ),
        Field(
            "media-age",
            kinds.duration(0.02, 10.0, or_zero=False),
            "Media that has waited so long on a stream that is backed up is dropped, oldest first.",
            default="250 ms",
        ),
        Field(
            "control-log",
            kinds.switch(),
            "Write this interface's control messages to `data-log`.",
            default="off",
            effect=Effect.LIVE,
        ),
        Field(
            "plain-transports",
            kinds.switch(),
            "Allow `tcp` and `udp` ports, which neither encrypt nor tell who is there.",
            default="off",
        ),
    ),
    presence=Effect.RESTART,
)

OBJECTS: Final = (
    SERVER,
    TIMERS,
    AUTHENTICATION,
    REALM,
    SBC,
    TRUNK,
    TLS_PROFILE,
    PORT,
    DATA_FLOW,
    PROTOCOL_POLICY,
    ADDRESS_POOL,
    INTERFACE,
)
BY_KEY: Final = {object_type.key: object_type for object_type in OBJECTS}
