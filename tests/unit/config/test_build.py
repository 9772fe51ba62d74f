"""From a text to settings: what comes out, and every way in which it can be wrong."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from opentsm.config import ConfigErrors, loads
from opentsm.config.model import AuthMethod, CoreSide
from opentsm.engine.policy import RewriteRow
from opentsm.engine.pools import AddressRange
from opentsm.types import Service, Transport


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        loads(text, source="f")
    assert str(caught.value).splitlines() == [str(problem) for problem in caught.value.problems]
    return [str(problem) for problem in caught.value.problems]


def test_the_shortest_configuration_has_the_defaults(minimal: str) -> None:
    settings = loads(minimal, source="/etc/opentsm/server.toml")
    assert (settings.timers.keepalive_timer, settings.timers.keepalive_timer_datagram) == (300.0, 0.0)
    assert settings.timers.tunnel_persistence_time == 330.0
    interface = settings.interfaces["access"]
    assert interface.enabled
    assert interface.assigned_services == {Service.SIP}
    assert (interface.max_tunnels, interface.plain_transports, interface.control_log) == (0, False, False)
    assert interface.ports[0].tls_profile is settings.tls_profiles["main"]
    assert settings.tls_profiles["main"].certificate == Path("/etc/opentsm/server.pem")
    assert settings.ports["v4"].port == 443
    assert settings.server.admin_socket == Path("/run/opentsm/admin.sock")


def test_the_order_in_the_file_does_not_matter(minimal: str) -> None:
    backwards = "\n\n".join(reversed(minimal.split("\n\n")))
    assert loads(backwards, source="f") == loads(minimal, source="f")


def test_references_become_the_objects_themselves(example: str) -> None:
    settings = loads(example, source="f")
    interface = settings.interfaces["access"]
    assert interface.realm is settings.realms["core"]
    (pool,) = interface.address_pools
    assert pool.data_flow is settings.data_flows["voice"]
    assert pool.data_flow.upstream_rate == 250_000
    assert pool.sip_server == (ip_address("10.64.0.2"), 5060)
    assert pool.ranges[1] == AddressRange.parse("10.64.2.10-10.64.2.200")
    assert settings.authentication.methods == (AuthMethod.CERTIFICATE, AuthMethod.PASSWORD)
    assert settings.server_addresses == {ip_address("10.64.0.1"), ip_address("fd00:64::1")}


def test_policies_compile_to_rows_of_the_user_plane(example: str) -> None:
    assert loads(example).rewrite_rows() == (
        RewriteRow("10.64.0.1/32", 6, 389, ("192.0.2.20", 389), True),
        RewriteRow("0.0.0.0/0", 6, 25, None, False),
    )


def test_a_stream_port_brings_its_datagram_sibling_also_without_ddt(minimal: str) -> None:
    interface = loads(minimal).interfaces["access"]
    assert Service.DDT not in interface.assigned_services
    found = [(one.address, one.transport, one.implied) for one in interface.listeners]
    assert found == [(("0.0.0.0", 443), Transport.TLS, False), (("0.0.0.0", 443), Transport.DTLS, True)]


def test_an_explicit_sibling_is_not_opened_twice(minimal: str) -> None:
    text = minimal.replace('ports = ["v4"]', 'ports = ["v4", "v4d"]')
    text += '[tscf-port.v4d]\naddress = "0.0.0.0"\ntransport-protocol = "dtls"\n'
    found = [(one.transport, one.implied) for one in loads(text).interfaces["access"].listeners]
    assert sorted(found, key=str) == [(Transport.DTLS, False), (Transport.TLS, False)]


def test_plain_transports_pair_tcp_with_udp(minimal: str) -> None:
    text = minimal.replace('tls-profile = "main"', 'transport-protocol = "tcp"') + "plain-transports = true\n"
    found = [one.transport for one in loads(text).interfaces["access"].listeners]
    assert found == [Transport.TCP, Transport.UDP]


def test_routes_of_a_realm_depend_on_its_core_side(example: str) -> None:
    realm = loads(example).realms["core"]
    assert realm.core is CoreSide.TUN
    assert realm.core_routes == (ip_network("0.0.0.0/0"), ip_network("::/0"))
    assert realm.addresses[0] == ip_interface("10.64.0.1/16")
    assert [realm.prefix_length(ip_address(a)) for a in ("10.64.9.9", "10.65.0.1", "fd00:64::9")] == [
        16,
        32,
        64,
    ]
    userspace = example.replace('core = "tun"', 'core = "userspace"').replace('tun = "tsm0"\n', "")
    assert loads(userspace).realms["core"].core_routes == ()
    some = userspace.replace("[sbc.calls]", 'routes = "192.0.2.0/24"\n[sbc.calls]')
    assert loads(some).realms["core"].core_routes == (ip_network("192.0.2.0/24"),)


def test_options_of_a_plug_in(minimal: str) -> None:
    text = minimal.replace(
        "anonymous = true", 'plugins = "ldap"\nplugin-options = ["ldap.url=ldaps://x?a=b"]'
    )
    assert loads(text).authentication.options_of("ldap") == {"url": "ldaps://x?a=b"}
    assert problems(text.replace('plugins = "ldap"', 'plugins = "radius"')) == [
        "f:3: authentication: ldap is not among the plugins (add it, or remove this)"
    ]


def test_every_problem_is_reported_in_the_order_of_the_file() -> None:
    text = """\
workers = 2
[timers]
keepalive-timer = "5 s"
keepalive-timr = 0
[tscf-interfaces.a]
[tscf-interface.b]
ports = "v4"
max-tunnels = -1
[realm.core]
core = "tunnel"
"""
    assert problems(text) == [
        "f:1: 'workers' is not an object of the configuration "
        "(known: server, timers, authentication, realm, sbc, trunk, tls-profile, tscf-port, tscf-data-flow, "
        "tscf-protocol-policy, tscf-address-pool, tscf-interface)",
        "f:3: timers: keepalive-timer: '5 s' is out of range: 0 (off) or 30 s to 660 s",
        "f:4: timers has no setting 'keepalive-timr' (did you mean 'keepalive-timer'?)",
        "f:5: 'tscf-interfaces' is not an object of the configuration (did you mean 'tscf-interface'?)",
        "f:6: tscf-interface b has no realm (add realm: name of a `realm`)",
        "f:6: tscf-interface b has no address-pools "
        "(add address-pools: names of `tscf-address-pool` objects)",
        "f:7: tscf-interface b: ports: there is no tscf-port 'v4' (add [tscf-port.v4])",
        "f:8: tscf-interface b: max-tunnels: -1 is out of range: 0 to 200000",
        "f:10: realm core: core: 'tunnel' is not one of tun, userspace, none",
    ]


def test_a_broken_object_is_one_problem_and_what_refers_to_it_is_not_another(minimal: str) -> None:
    assert problems(minimal.replace('core = "none"', 'core = "nowhere"')) == [
        "f:5: realm core: core: 'nowhere' is not one of tun, userspace, none"
    ]


ONE_CHANGE = [
    # what is replaced, by what, the problem that is reported
    ('core = "none"', 'core = "tun"', 'f:5: realm core: core tun needs a device (add tun = "tsm0")'),
    (
        'core = "none"',
        'core = "none"\ntun = "x"',
        "f:6: realm core: core none has no TUN device (remove tun)",
    ),
    (
        'core = "none"',
        'core = "none"\nroutes = "::/0"',
        "f:6: realm core: core none leads nowhere (remove routes)",
    ),
    (
        'core = "none"',
        'core = "tun"\ntun = "sixteen-letters0"',
        "f:6: realm core: tun: 'sixteen-letters0' is not ",
    ),
    ('tls-profile = "main"', "", "f:11: tscf-port v4: a tls port needs a tls-profile"),
    ('tls-profile = "main"', 'tls-profile = "mian"', "there is no tls-profile 'mian' (did you mean 'main'?)"),
    (
        'tls-profile = "main"',
        'tls-profile = "main"\n'
        '[tscf-port.x]\naddress = "::"\ntransport-protocol = "tcp"\ntls-profile = "main"',
        "f:17: tscf-port x: a tcp port has no use for a tls-profile (remove it)",
    ),
    (
        'tls-profile = "main"',
        'transport-protocol = "tcp"',
        "f:20: tscf-interface access: port v4 is tcp, which neither encrypts nor tells who is there "
        "(use tls, or allow it here with plain-transports = on)",
    ),
    (
        'tls-profile = "main"',
        'transport-protocol = "dtls"',
        "port v4 is dtls without a tls port of the same address and number "
        "(remove it: a tls port opens dtls by itself)",
    ),
    (
        'key = "server.key"',
        'key = "server.key"\nclient-auth = "require"',
        "f:10: tls-profile main: client certificates need a client-ca to be checked against",
    ),
    ("anonymous = true", "", 'f:1: authentication: no client could authenticate (add methods = ["password"]'),
    (
        "anonymous = true",
        'methods = "password"',
        "f:2: authentication: method password needs a password-file",
    ),
    ("anonymous = true", 'methods = "token"', "f:2: authentication: method token needs a token-file"),
    ("anonymous = true", 'methods = "certificate"', "method certificate needs a port that asks for one"),
    ("10.64.1.0/24", "10.64.1.1/24", "ranges: 10.64.1.1/24 has host bits set"),
    ('["10.64.1.0/24"]', "[]", "f:16: tscf-address-pool office: ranges: it must not be empty"),
    (
        '["10.64.1.0/24"]',
        '["10.64.1.0/24", "10.64.1.9"]',
        "f:16: tscf-address-pool office: 10.64.1.1-10.64.1.254 and 10.64.1.9 overlap",
    ),
    (
        "[tscf-interface.access]",
        '[tscf-address-pool.other]\nranges = "10.64.1.7"\n[tscf-interface.access]',
        "f:19: tscf-address-pool other: its addresses overlap those of pool office",
    ),
    (
        'core = "none"',
        'core = "none"\naddresses = "10.65.1.1/16"\n[tscf-address-pool.own]\nranges = "10.65.1.1"',
        "tscf-address-pool own: only the server's own addresses are in it (widen it)",
    ),
    (
        'core = "none"',
        'core = "userspace"\naddresses = "10.65.0.1/16"',
        "f:17: tscf-address-pool office: 10.64.1.1-10.64.1.254 is outside of 10.65.0.0/16, "
        "the prefixes of realm core",
    ),
    (
        'core = "none"',
        'core = "none"\naddresses = "10.0.0.1/8"\n[realm.other]\ncore = "none"\naddresses = "10.0.0.1/8"',
        "f:9: realm other: realm core has 10.0.0.1 already",
    ),
    (
        'core = "none"',
        'core = "tun"\ntun = "t"\n[realm.other]\ncore = "tun"\ntun = "t"',
        "f:9: realm other: realm core has device t already",
    ),
    (
        'ports = ["v4"]\naddress-pools = ["office"]',
        'ports = ["v4", "v4b"]\naddress-pools = "office"\n'
        '[tscf-port.v4b]\naddress = "192.0.2.1"\ntls-profile = "main"',
        "tscf-port v4b: 192.0.2.1 443/tls is taken by port v4 (0.0.0.0 443/tls)",
    ),
    (
        "[tscf-interface.access]",
        '[tscf-interface.first]\nrealm = "core"\nports = "v4"\naddress-pools = "office"\n'
        "[tscf-interface.access]",
        "f:24: tscf-interface access: interface first uses port v4 already",
    ),
    ("[tscf-interface.access]", "[tscf-interface.'a b']", "f:18: a tscf-interface needs a name of letters"),
    (
        "[tscf-interface.access]",
        "[[tscf-interface]]",
        "f:18: a tscf-interface needs a name of letters",
    ),
    ("[authentication]", "timers = 5\n[authentication]", "f:1: timers is not written as an object (write it"),
    (
        "[realm.core]",
        "[realm]\nx = 5\n[realm.core]",
        "f:5: realm is not written as an object (write it as [realm.NAME])",
    ),
    (
        'core = "none"',
        'core = "none"\necho = 7',
        "f:6: realm core: the echo service needs an address of the server's (add addresses)",
    ),
    ("[authentication]", "[authentication.x]", "f:1: authentication has no setting 'x'"),
    ('ports = ["v4"]', 'ports = ["v4", "v4"]', "f:20: tscf-interface access: ports: 'v4' is listed twice"),
    ('realm = "core"', 'realm = ["core"]', "realm: ['core'] is not a text; give one value"),
    (
        'ranges = ["10.64.1.0/24"]',
        'ranges = "10.64.1.0/24"\nprotocol-policies = "p"\n'
        '[tscf-protocol-policy.p]\ndestination = "::1"\nport = 5',
        "tscf-protocol-policy p: policy p: a port needs a transport",
    ),
    (
        'ranges = ["10.64.1.0/24"]',
        'ranges = "10.64.1.0/24"\nprotocol-policies = "p,q"\n[tscf-protocol-policy.p]\ndestination = "::1"\n'
        '[tscf-protocol-policy.q]\ndestination = "::1"\naction = "deny"',
        "f:20: tscf-protocol-policy q: protocol policies p and q both match any ::1/128 port any and differ",
    ),
]


@pytest.mark.parametrize(("old", "new", "said"), ONE_CHANGE)
def test_one_mistake_gives_one_problem(minimal: str, old: str, new: str, said: str) -> None:
    assert old in minimal
    (problem,) = problems(minimal.replace(old, new))
    assert said in problem


def test_an_empty_file_says_what_is_missing_first() -> None:
    first, second = problems("")
    assert first == "f: tscf-interface: there is none, so nothing to serve (add [tscf-interface.NAME])"
    assert second.startswith("f: authentication: no client could authenticate")


def test_the_same_object_twice_in_xml_is_refused() -> None:
    text = '<opentsm>\n<realm name="a"><core>none</core></realm>\n<realm name="a"/>\n</opentsm>'
    with pytest.raises(ConfigErrors, match="f:3: realm a is there twice; the first is on line 2"):
        loads(text, source="f", format="xml")


def test_a_named_single_object_in_xml_is_refused() -> None:
    with pytest.raises(ConfigErrors, match="f:1: there is only one timers; it has no name"):
        loads('<opentsm><timers name="a"/></opentsm>', source="f", format="xml")


def test_thousands_of_pools_are_checked(minimal: str) -> None:
    pools = [f'[tscf-address-pool.p{n}]\nranges = "10.{n // 256}.{n % 256}.0/24"' for n in range(2_000)]
    text = minimal.replace("10.64.1.0/24", "172.16.0.0/16") + "\n".join(pools)
    assert len(loads(text).address_pools) == 2_001
    text += '\n[tscf-address-pool.last]\nranges = "10.7.200.9-10.7.200.20"\n'
    assert len(problems(text)) == 1
