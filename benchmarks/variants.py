"""What is compared: plain routing, OpenTSM and ocserv, each with its datagram and its stream path (OpenVPN is
in ``openvpn``).

A variant sets itself up on a rig, says how the core reaches the client and whose CPU time counts, checks
that the packets really take the path they are said to take, and takes itself down.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import ClassVar, Final

from benchmarks.rig import CLIENT, CORE, DOWN_PORT, SERVER, UP_PORT, Rig, stop
from opentsm.admin.certificates import create_authority, issue_client, issue_server, write
from opentsm.errors import PlatformError

INNER: Final = "10.64.0.2"
USER: Final = "bench"
PASSWORD: Final = "bench"
SETTLE: Final = 10.0
"""Seconds a rival's server and client may take to be up; they need half of one."""


MOST_MERGED: Final = 64
"""Datagrams that the kernel merges into one, which it then counts once."""

STRAY: Final = 50
STRAY_SHARE: Final = 0.02
"""Packets on the other path that are no sign of trouble: keepalives, dead peer detection."""


@dataclass(frozen=True, slots=True)
class OuterPackets:
    """Datagrams and segments, in and out; what the kernel merges counts once."""

    udp: int
    tcp: int


class Variant(ABC):
    """One way from the client to the core.

    Args:
        rig: where.
        folder: for keys, configurations and logs.
    """

    name: ClassVar[str]
    datagrams: ClassVar[bool] = True

    def __init__(self, rig: Rig, folder: Path) -> None:
        self.rig = rig
        self.folder = folder
        self.inner = INNER
        self._processes: list[subprocess.Popen[str]] = []

    @abstractmethod
    def set_up(self) -> None:
        """Bring the tunnel up."""

    def take_down(self) -> None:
        """End the processes, last started first; their devices and routes go with them."""
        while self._processes:
            stop(self._processes.pop())

    @property
    def server_pids(self) -> list[int]:
        """Whose CPU time counts."""
        return []

    @classmethod
    def obstacle(cls) -> str | None:
        """Why this variant cannot run on this machine."""
        return None

    def wait_for(self, condition: Callable[[], bool], complaint: str, log: Path) -> None:
        """Wait until the condition holds.

        Raises:
            PlatformError: it does not within ``SETTLE`` seconds; the message has the complaint and the log.
        """
        deadline = time.monotonic() + SETTLE
        while not condition():
            if time.monotonic() > deadline:
                raise PlatformError(f"{complaint}; see {log}")
            time.sleep(0.02)

    def outer_packets(self) -> OuterPackets:
        """What has reached and left the sockets of the server's host so far: the tunnels, nothing else.

        Inner packets are forwarded there and end at no socket.
        """
        lines = self.rig.server.run(["cat", "/proc/net/snmp"]).stdout.splitlines()
        counts = {}
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            counts[names.partition(":")[0]] = dict(zip(names.split(), values.split(), strict=True))
        udp, tcp = counts["Udp"], counts["Tcp"]
        return OuterPackets(
            udp=int(udp["InDatagrams"]) + int(udp["OutDatagrams"]),
            tcp=int(tcp["InSegs"]) + int(tcp["OutSegs"]),
        )

    def check_path(self, before: OuterPackets, after: OuterPackets, packets: int) -> None:
        """Make sure that the packets went the way this variant is named after.

        Raises:
            PlatformError: they did not.
        """
        udp, tcp = after.udp - before.udp, after.tcp - before.tcp
        stray = STRAY_SHARE * packets + STRAY
        if (udp < packets / MOST_MERGED) if self.datagrams else (udp > stray):
            raise PlatformError(f"{packets} packets took {udp} UDP datagrams and {tcp} TCP segments")


class Plain(Variant):
    """Routing and nothing else: what the rig itself costs and can do."""

    name = "plain"

    def set_up(self) -> None:
        self.inner = CLIENT
        with suppress(PlatformError):
            self.rig.client.ip("route", "del", CORE)
        self.rig.client.ip("route", "add", CORE, "via", SERVER)

    def take_down(self) -> None:
        self.rig.client.ip("route", "del", CORE)

    def check_path(self, before: OuterPackets, after: OuterPackets, packets: int) -> None:
        if after != before:
            raise PlatformError("packets that should have been forwarded ended at the server")


class OpenTsm(Variant):
    """The user plane under ``tun_server`` and ``tun_client``."""

    path: ClassVar[str]

    def set_up(self) -> None:
        server = self.rig.start_module(
            *(self.rig.server, "benchmarks.tun_server", "--address", SERVER, "--keys", str(self.folder)),
            *("--path", self.path, "--ports", str(DOWN_PORT)),
        )
        self._processes.append(server)
        client = self.rig.start_module(
            *(self.rig.client, "benchmarks.tun_client", "--server", SERVER, "--far", CORE),
            *("--ca", str(self.folder / "ca.pem"), "--path", self.path, "--ports", str(UP_PORT)),
        )
        self._processes.append(client)

    @property
    def server_pids(self) -> list[int]:
        return [self._processes[0].pid]

    def signal_server(self, number: int) -> None:
        """SIGUSR1 makes the server's control plane busy, SIGUSR2 idle."""
        self._processes[0].send_signal(number)


class OpenTsmDtls(OpenTsm):
    """Media on the datagram tunnel."""

    name = "opentsm-dtls"
    path = "datagram"


class OpenTsmTls(OpenTsm):
    """Everything on the stream."""

    name = "opentsm-tls"
    path = "stream"
    datagrams = False


class Ocserv(Variant):
    """ocserv with openconnect, set up as the comments of its sample configuration advise for speed."""

    udp: ClassVar[bool]

    @classmethod
    def obstacle(cls) -> str | None:
        missing = [name for name in ("ocserv", "ocpasswd", "openconnect") if not shutil.which(name)]
        if missing:
            return f"{', '.join(missing)} not installed (Debian: apt-get install ocserv openconnect)"
        return None if os.geteuid() == 0 else "ocserv needs root"

    def set_up(self) -> None:
        folder, log = self.folder, self.folder / f"{self.name}.log"
        log.unlink(missing_ok=True)
        self._write_files()
        server = self.rig.start(
            *(self.rig.server, ["ocserv", "--foreground", "--config", str(folder / "ocserv.conf")]),
            ready="",
            log=log,
        )
        self._processes.append(server)
        self.wait_for(lambda: "443" in self._listening(), "ocserv does not listen", log)
        client = self.rig.start(
            self.rig.client,
            ["openconnect", "--protocol=anyconnect", "--non-inter", "--passwd-on-stdin", "--user", USER]
            + ["--cafile", str(folder / "ca.pem"), "--script", str(folder / "up.sh"), "--interface", "oc0"]
            + ([] if self.udp else ["--no-dtls"])
            + [f"https://{SERVER}"],
            ready="",
            log=log,
            stdin=subprocess.PIPE,
        )
        self._processes.append(client)
        assert client.stdin is not None
        client.stdin.write(PASSWORD + "\n")
        client.stdin.flush()
        self.wait_for(lambda: "scope" in self._address(), "openconnect has no address", log)
        self.inner = self._address().split()[3].split("/")[0]
        if self.udp:
            self.wait_for(lambda: "Established DTLS" in self._said(log), "no DTLS", log)

    def _write_files(self) -> None:
        folder = self.folder
        subprocess.run(
            ["ocpasswd", "-c", str(folder / "ocpasswd"), USER],
            input=f"{PASSWORD}\n{PASSWORD}\n",
            text=True,
            check=True,
            capture_output=True,
        )
        (folder / "ocserv.conf").write_text(
            CONFIGURATION.format(folder=folder, server=SERVER, udp=self._udp_line)
        )
        script = folder / "up.sh"
        script.write_text(CLIENT_SCRIPT.format(core=CORE))
        script.chmod(0o755)

    @property
    def _udp_line(self) -> str:
        return "udp-port = 443" if self.udp else ""

    def _listening(self) -> str:
        return self.rig.server.run(["ss", "-Hltn", "sport", "=", ":443"]).stdout

    def _address(self) -> str:
        done = self.rig.client.run(["ip", "-o", "-4", "address", "show", "dev", "oc0"], check=False)
        return done.stdout

    def _said(self, log: Path) -> str:
        return log.read_text(errors="replace") if log.exists() else ""

    @property
    def server_pids(self) -> list[int]:
        # The main process, the security module and one worker per client.
        return self.rig.server_processes()


class OcservDtls(Ocserv):
    """DTLS on UDP/443."""

    name = "ocserv-dtls"
    udp = True


class OcservTls(Ocserv):
    """TLS only."""

    name = "ocserv-tls"
    udp = False
    datagrams = False


# From the comments of the sample configuration: AES-GCM is the quickest cipher (128 bits, as ours), the
# isolation of workers costs about 2 %, compression is off unless asked for.
CONFIGURATION: Final = """\
auth = "plain[passwd={folder}/ocpasswd]"
listen-host = {server}
tcp-port = 443
{udp}
run-as-user = root
run-as-group = root
socket-file = {folder}/ocserv.sock
pid-file = {folder}/ocserv.pid
server-cert = {folder}/server.pem
server-key = {folder}/server.key
isolate-workers = false
max-clients = 16
max-same-clients = 16
rate-limit-ms = 0
keepalive = 300
dpd = 90
mobile-dpd = 1800
switch-to-tcp-timeout = 25
try-mtu-discovery = false
compression = false
tls-priorities = "NORMAL:%SERVER_PRECEDENCE:-CIPHER-ALL:+AES-128-GCM:-VERS-ALL:+VERS-TLS1.2:+VERS-DTLS1.2"
auth-timeout = 40
cookie-timeout = 300
rekey-time = 172800
rekey-method = ssl
use-occtl = false
log-level = 1
device = oc
predictable-ips = true
ipv4-network = 10.64.0.0
ipv4-netmask = 255.255.0.0
route = 10.77.2.0/255.255.255.0
cisco-client-compat = false
dtls-legacy = true
dtls-psk = true
max-ban-score = 0
"""

CLIENT_SCRIPT: Final = """\
#!/bin/sh
# What vpnc-script does, as far as it is needed here.
case "$reason" in
connect)
    ip link set dev "$TUNDEV" up mtu "$INTERNAL_IP4_MTU"
    ip address add "$INTERNAL_IP4_ADDRESS/32" dev "$TUNDEV"
    ip route add {core} dev "$TUNDEV" src "$INTERNAL_IP4_ADDRESS"
    ;;
esac
"""


def make_keys(folder: Path) -> None:
    """A development CA, the server's certificate for all servers, and a client's for OpenVPN."""
    now = datetime.now(UTC)
    authority = create_authority(now)
    write(authority, folder, "ca")
    server = issue_server(authority, now, names=["bench.invalid"], addresses=[ip_address(SERVER)])
    write(server, folder, "server")
    write(issue_client(authority, now, name=USER), folder, "client")
