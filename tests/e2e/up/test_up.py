"""A whole phone behind a tunnel, its programs and sockets unchanged: `opentsm up`."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from opentsm.lab.firewall import tcp_udp_443
from opentsm.lab.serving import ServerProcess
from opentsm.lab.topology import Lab
from opentsm.lab.traffic import MediaFlow, MediaReceiver, MediaSender, send_all
from opentsm.lab.waiting import until, until_now
from opentsm.lab.wan import python_environment
from opentsm.tasks import cancel, spawn
from tests.e2e.tunnels.harness import start_echo
from tests.e2e.up.harness import CORE, Up, network

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]

SIP_LIKE = b"OPTIONS sip:core@10.200.1.2 SIP/2.0\r\n\r\n"


def ask(sock: socket.socket, to: tuple[str, int], text: bytes) -> tuple[bytes, tuple[str, int]]:
    sock.settimeout(10)
    sock.sendto(text, to)
    data, source = sock.recvfrom(2048)
    return data, (source[0], source[1])


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_programs_reach_the_core_and_the_end_leaves_nothing(
    lab: Lab, server: ServerProcess, how: signal.Signals
) -> None:
    phone, core = lab["phone1"], lab["core"]
    before = network(phone)
    with Up(lab, server, *CORE) as up:
        phone.run(["ping", "-c", "2", "-W", "5", core.ipv4])
        phone.run(["ping", "-c", "2", "-W", "5", core.ipv6])
        for address, version in ((core.ipv4, 4), (core.ipv6, 6)):
            echo = start_echo(lab, address=address)
            family = socket.AF_INET if version == 4 else socket.AF_INET6
            with (
                phone.socket(family, socket.SOCK_DGRAM) as sock,
                core.capture("srv1") as wire,
            ):
                assert ask(sock, echo, b"hello") == (b"hello", echo)
                seen = wire.wait_for(1, protocol="udp", port=4000)
                assert {p.source for p in seen if p.destination_port == 4000} == {up.address(version)}
        assert up.stop(how) == 0, up.said
    assert network(phone) == before


async def test_media_moves_to_udp_443_by_itself_and_signalling_stays_on_tcp(
    lab: Lab, server: ServerProcess
) -> None:
    lab.firewall().apply(tcp_udp_443(lab["server"].ipv4))
    echo = start_echo(lab)
    phone = lab["phone1"]
    with Up(lab, server, *CORE) as up:
        own = up.address()
        receiver, flow = MediaReceiver(), MediaFlow(1)
        receiver.expect(flow)
        with lab["firewall1"].capture("wan0") as wire:
            with phone.udp(own, 5060) as signalling:
                signalling.setblocking(True)
                assert ask(signalling, echo, SIP_LIKE) == (SIP_LIKE, echo)
                assert not wire.select(protocol="udp"), "signalling alone makes no datagram tunnel"
                transport, _ = await phone.datagram_endpoint(
                    lambda: receiver, local=(own, 40000), remote=echo
                )
                talking = spawn("media", send_all([MediaSender(transport, flow)], seconds=60))
                await until(lambda: _media(wire, "out") >= 100, within=40, what="media as DTLS")
                await until(lambda: _media(wire, "in") >= 100, within=40, what="media as DTLS, back")
                before = _media(wire, "out")
                assert ask(signalling, echo, SIP_LIKE) == (SIP_LIKE, echo)
                await until(lambda: _media(wire, "out") > before, within=40)
            await cancel(talking)
            sent = len(flow.sent)
            await until(lambda: len(set(flow.numbers)) == sent, within=20, what="every packet")
            transport.close()
        ports = {(p.protocol, 443 in (p.source_port, p.destination_port)) for p in wire.packets}
        assert ports == {("tcp", True), ("udp", True)}
        rows = {row["port"]: row for row in server.tunnels()[0]["flows"]}
        assert 40000 in rows
        assert 5060 not in rows, "signalling was taken for media"
        report = flow.report()
        assert (report.lost, report.duplicated) == (0, 0)
        # A call that is over gives its place in the tables back, and the datagram tunnel goes with the last.
        await until(
            lambda: not server.tunnels()[0]["flows"], within=60, what="the quiet flow to be forgotten"
        )


def _media(wire: object, direction: str) -> int:
    return sum(
        p.is_dtls and p.payload[0] == 23
        for p in wire.select(direction=direction)  # type: ignore[attr-defined]
    )


class TestDefaultRoute:
    def test_everything_goes_in_and_the_outer_connection_stays_out(
        self, lab: Lab, server: ServerProcess
    ) -> None:
        phone, core = lab["phone1"], lab["core"]
        before = network(phone)
        with Up(lab, server, "--default-route") as up:
            with lab["firewall1"].capture("wan0") as wire:
                phone.run(["ping", "-c", "2", "-W", "5", core.ipv4])
                # Nobody is there, and the firewall must not learn that it was asked for.
                phone.run(["ping", "-c", "1", "-W", "1", "203.0.113.9"], check=False)
            outside = {(p.protocol, p.destination) for p in wire.select(direction="out")}
            assert outside == {("tcp", lab["server"].ipv4)}
            route = phone.ip("route", "get", lab["server"].ipv4)
            assert "dev eth0" in route
            assert "via" in route
            assert up.stop() == 0, up.said
        assert network(phone) == before

    def test_what_a_killed_one_left_is_taken_over(self, lab: Lab, server: ServerProcess) -> None:
        phone = lab["phone1"]
        before = network(phone)
        up = Up(lab, server, "--default-route")
        up.start()
        up.stop(signal.SIGKILL)
        until_now(lambda: "tsm0" not in phone.ip("-brief", "link"), what="the device to go with its owner")
        with Up(lab, server, "--default-route") as again:
            phone.run(["ping", "-c", "1", "-W", "5", lab["core"].ipv4])
            assert again.stop() == 0
        assert network(phone) == before


def test_another_address_after_a_refused_resume_is_the_devices(lab: Lab, server: ServerProcess) -> None:
    phone, core = lab["phone1"], lab["core"]
    with Up(lab, server, *CORE) as up:
        first = up.address()
        server.stop(signal.SIGKILL)  # without a word, and with it goes the memory of the session
        server.shape.ranges = ("10.64.1.100-10.64.1.120", "fd00:64::2000-fd00:64::2fff")
        server.start()
        until_now(lambda: up.address() not in ("", first), within=60, what="another address on the device")
        until_now(
            lambda: phone.run(["ping", "-c", "1", "-W", "2", core.ipv4], check=False).returncode == 0,
            within=30,
            what="the core through the new tunnel",
        )
        assert up.address() == "10.64.1.100"
        assert up.stop() == 0


class TestRefusals:
    def attempt(self, lab: Lab, server: ServerProcess, *options: str) -> str:
        """What a failing `opentsm up` says; everything is as it was afterwards."""
        up = Up(lab, server, *options)
        before = network(up.host)
        done = up.host.run(up.command, check=False, env=python_environment())
        assert done.returncode == 1
        assert network(up.host) == before
        assert "Traceback" not in done.stderr
        return done.stderr

    def test_a_name_in_use(self, lab: Lab, server: ServerProcess) -> None:
        with Up(lab, server):
            assert "there is a network device tsm0 already" in self.attempt(lab, server)

    def test_a_network_that_is_here_already(self, lab: Lab, server: ServerProcess) -> None:
        said = self.attempt(lab, server, "--route", "192.168.1.0/24")
        assert "the network 192.168.1.0/24 is behind eth0 already" in said

    def test_a_route_that_would_cut_the_outer_connection(self, lab: Lab, server: ServerProcess) -> None:
        said = self.attempt(lab, server, "--route", f"{server.host.ipv4}/32")
        assert "would send the tunnel's own packets into the tunnel" in said

    def test_a_wrong_password(self, lab: Lab, server: ServerProcess, tmp_path: Path) -> None:
        wrong = tmp_path / "wrong"
        wrong.write_text("wrong\n")
        assert "unauthorized" in self.attempt(lab, server, "--password-file", str(wrong))
