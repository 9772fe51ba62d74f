"""Who is compared in ``benchmarks.fallback``: OpenTSM and Debian's ocserv/openconnect and OpenVPN, each as
shipped (or as its manual's example has it), the rivals also with their smallest sensible times."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import ClassVar, Final

from benchmarks.variants import CLIENT_SCRIPT
from opentsm.admin.certificates import create_authority, issue_client, issue_server, write
from opentsm.errors import PlatformError
from opentsm.lab.serving import PASSWORD, USER, ServerProcess, make_credentials
from opentsm.lab.topology import Lab
from opentsm.lab.waiting import until_now
from opentsm.lab.wan import python_environment

UP_WITHIN: Final = 45.0
"""Seconds a product may take to be up, on a machine that runs several of them."""


class Product(ABC):
    """One product in one lab: its server in ``server``, its client in ``phone1``.

    Args:
        lab: whose processes end with it. folder: for keys, settings and logs.
    """

    name: ClassVar[str]
    settings: ClassVar[str]
    device: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        self.server = lab["server"]
        self.phone = lab["phone1"]
        self.core = lab["core"]

    @classmethod
    def obstacle(cls) -> str | None:
        path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        missing = [program for program in cls.needs if not shutil.which(program, path=path)]
        return f"{', '.join(missing)} not installed" if missing else None

    @abstractmethod
    def set_up(self) -> None:
        """Start both sides; returns when the client has its inner address."""

    def address(self) -> str:
        """The client's inner address; empty while it has none."""
        fields = self.phone.run(
            ["ip", "-o", "-4", "address", "show", "dev", self.device], check=False
        ).stdout.split()
        return fields[3].partition("/")[0] if len(fields) > 3 else ""

    def start(self, host: str, words: list[str], log: str, stdin: str = "") -> None:
        with (self.folder / log).open("ab") as out:
            process = self.lab[host].popen(
                words, stdout=out, stderr=out, stdin=subprocess.PIPE, env=python_environment()
            )
        assert process.stdin is not None
        process.stdin.write(stdin.encode())
        process.stdin.close()

    def said(self, log: str) -> str:
        path = self.folder / log
        return path.read_text(errors="replace") if path.exists() else ""

    def up(self, log: str) -> None:
        try:
            until_now(self.address, within=UP_WITHIN, what="an inner address")
        except TimeoutError as error:
            raise PlatformError(f"{self.name} does not come up: {self.said(log)[-800:]}") from error


class OpenTsm(Product):
    """`opentsm serve` and `opentsm up`, nothing set."""

    name = "OpenTSM"
    settings = "as shipped"
    device = "tsm0"

    def set_up(self) -> None:
        make_credentials(self.folder, self.server)
        server = ServerProcess(self.server, self.folder)
        server.start()
        secret = self.folder / "password"
        secret.write_text(f"{PASSWORD}\n")
        url = f"tls://{self.server.ipv4}:443"
        words = [sys.executable, "-m", "opentsm.cli.main", "up", url, "--user", USER]
        words += ["--password-file", str(secret), "--ca", str(self.folder / "ca.pem")]
        self.start("phone1", [*words, "--route", f"{self.core.ipv4}/32"], "up.log")
        self.up("up.log")


class Ocserv(Product):
    """ocserv and openconnect."""

    name = "ocserv/openconnect"
    settings = "as shipped: dpd 90, switch-to-tcp-timeout 25"
    device = "oc0"
    needs = ("ocserv", "ocpasswd", "openconnect")
    dpd: ClassVar[int] = 90
    to_tcp: ClassVar[int] = 25

    def set_up(self) -> None:
        folder = self.folder
        make_keys(folder, self.server.ipv4)
        subprocess.run(
            ["ocpasswd", "-c", str(folder / "ocpasswd"), USER],
            input=f"{PASSWORD}\n{PASSWORD}\n",
            text=True,
            check=True,
            capture_output=True,
        )
        text = _OCSERV.format(folder=folder, dpd=self.dpd, to_tcp=self.to_tcp, core=self.core.ipv4)
        (folder / "ocserv.conf").write_text(text)
        script = folder / "up.sh"
        script.write_text(CLIENT_SCRIPT.format(core=self.core.ipv4))
        script.chmod(0o755)
        daemon = ["ocserv", "--foreground", "--config", str(folder / "ocserv.conf")]
        self.start("server", daemon, "ocserv.log")
        until_now(self._listens, within=UP_WITHIN, what="ocserv to listen")
        words = ["openconnect", "--protocol=anyconnect", "--non-inter", "--passwd-on-stdin", "--user", USER]
        words += ["--cafile", str(folder / "ca.pem"), "--script", str(script), "--interface", self.device]
        self.start("phone1", [*words, f"https://{self.server.ipv4}"], "openconnect.log", f"{PASSWORD}\n")
        self.up("openconnect.log")

    def _listens(self) -> bool:
        return ":443" in self.server.run(["ss", "-Hltn", "sport", "=", ":443"]).stdout


class OcservQuick(Ocserv):
    """The smallest settings there are."""

    settings = "dpd 1, switch-to-tcp-timeout 1"
    dpd = 1
    to_tcp = 1


class OpenVpn(Product):
    """Two daemons, and a profile with a UDP remote before a TCP one."""

    name = "OpenVPN"
    settings = "its manual's example: keepalive 10 60"
    device = "ovc0"
    needs = ("openvpn",)
    keepalive: ClassVar[str] = "10 60"
    client_words: ClassVar[str] = ""

    def set_up(self) -> None:
        folder = self.folder
        make_keys(folder, self.server.ipv4)
        program = shutil.which("openvpn") or "/usr/sbin/openvpn"
        for proto, third in (("udp", 0), ("tcp-server", 128)):
            text = _OPENVPN_SERVER.format(
                proto=proto, third=third, keepalive=self.keepalive, core=self.core.ipv4, folder=folder
            )
            (folder / f"{proto}.conf").write_text(text)
            self.start("server", [program, "--config", str(folder / f"{proto}.conf")], f"{proto}.log")
        text = _OPENVPN_CLIENT.format(server=self.server.ipv4, folder=folder, device=self.device)
        (folder / "client.conf").write_text(text + self.client_words)
        self.start("phone1", [program, "--config", str(folder / "client.conf")], "client.log")
        self.up("client.log")


class OpenVpnQuick(OpenVpn):
    """Times as small as make sense."""

    settings = "keepalive 1 4, hand-window and connect-timeout 5"
    keepalive = "1 4"
    client_words = "hand-window 5\nconnect-timeout 5\nconnect-retry 1 2\nserver-poll-timeout 5\n"


PRODUCTS: Final[dict[str, type[Product]]] = {
    "opentsm": OpenTsm,
    "ocserv": Ocserv,
    "ocserv-quick": OcservQuick,
    "openvpn": OpenVpn,
    "openvpn-quick": OpenVpnQuick,
}


def make_keys(folder: Path, server: str) -> None:
    """A CA, the server's certificate and a client's."""
    now = datetime.now(UTC)
    authority = create_authority(now)
    write(authority, folder, "ca")
    issued = issue_server(authority, now, names=["bench.invalid"], addresses=[ip_address(server)])
    write(issued, folder, "server")
    write(issue_client(authority, now, name=USER), folder, "client")


_OCSERV: Final = """\
auth = "plain[passwd={folder}/ocpasswd]"
tcp-port = 443
udp-port = 443
run-as-user = root
run-as-group = root
socket-file = {folder}/ocserv.sock
pid-file = {folder}/ocserv.pid
server-cert = {folder}/server.pem
server-key = {folder}/server.key
isolate-workers = false
max-clients = 16
max-same-clients = 2
rate-limit-ms = 100
keepalive = 32400
dpd = {dpd}
mobile-dpd = 1800
switch-to-tcp-timeout = {to_tcp}
try-mtu-discovery = false
compression = false
tls-priorities = "NORMAL:%SERVER_PRECEDENCE:%COMPAT:-VERS-SSL3.0:-VERS-TLS1.0:-VERS-TLS1.1"
auth-timeout = 240
cookie-timeout = 300
rekey-time = 172800
rekey-method = ssl
use-occtl = false
log-level = 1
device = ocs
predictable-ips = true
ipv4-network = 10.64.0.0
ipv4-netmask = 255.255.0.0
route = {core}/255.255.255.255
cisco-client-compat = true
dtls-legacy = true
dtls-psk = true
"""

_OPENVPN_KEYS: Final = """\
dev-type tun
ca {{folder}}/ca.pem
cert {{folder}}/{stem}.pem
key {{folder}}/{stem}.key
verb 3
"""

_OPENVPN_SERVER: Final = """\
port 443
proto {proto}
dev ovs{third}
mode server
tls-server
topology subnet
server 10.64.{third}.0 255.255.128.0
dh none
keepalive {keepalive}
push "route {core} 255.255.255.255"
""" + _OPENVPN_KEYS.format(stem="server")

_OPENVPN_CLIENT: Final = """\
client
nobind
dev {device}
remote {server} 443 udp
remote {server} 443 tcp-client
remote-cert-tls server
""" + _OPENVPN_KEYS.format(stem="client")
