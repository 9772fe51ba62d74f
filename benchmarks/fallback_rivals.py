"""Who is compared in ``benchmarks.fallback``: OpenTSM and Debian's ocserv/openconnect, OpenVPN and SoftEther,
each as shipped (or as its manual's example has it), the rivals also with their smallest sensible times."""

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

from benchmarks import ocserv
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
        settings = ocserv.write_settings(
            folder,
            listen=self.server.ipv4,
            core=self.core.ipv4,
            user=USER,
            password=PASSWORD,
            dpd=self.dpd,
            to_tcp=self.to_tcp,
        )
        self.start("server", ["ocserv", "--foreground", "--config", str(settings)], "ocserv.log")
        until_now(self._listens, within=UP_WITHIN, what="ocserv to listen")
        words = ocserv.client_words(folder, self.server.ipv4, USER, self.device)
        self.start("phone1", words, "openconnect.log", f"{PASSWORD}\n")
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


class SoftEther(Product):
    """vpnserver with one hub bridged to a TAP device; vpnclient with its virtual adapter.

    UDP acceleration is on, as it is by default. The server takes UDP ports from 40000 on for it, so it needs
    a firewall that passes, and for a block stops, UDP on any port.
    """

    name = "SoftEther"
    settings = "as shipped: UDP acceleration on"
    device = "vpn_se"
    needs = ("vpnserver", "vpnclient", "vpncmd")

    def set_up(self) -> None:
        self._daemon("server", "vpnserver")
        until_now(lambda: self._ready("server", "/SERVER"), within=UP_WITHIN, what="vpnserver to answer")
        self._order("server", "/SERVER", "BridgeCreate", "DEFAULT", "/DEVICE:se", "/TAP:yes")
        hub = ("/SERVER", "/HUB:DEFAULT")
        self._order("server", *hub, "UserCreate", USER, "/GROUP:none", "/REALNAME:none", "/NOTE:none")
        self._order("server", *hub, "UserPasswordSet", USER, f"/PASSWORD:{PASSWORD}")
        until_now(lambda: self._has("server", "tap_se"), within=UP_WITHIN, what="the TAP device")
        self.server.ip("address", "add", f"{_SOFTETHER_GATEWAY}/24", "dev", "tap_se")
        self.server.ip("link", "set", "tap_se", "up")
        self._client()

    def _client(self) -> None:
        self._daemon("phone1", "vpnclient")
        until_now(lambda: self._ready("phone1", "/CLIENT"), within=UP_WITHIN, what="vpnclient to answer")
        self._order("phone1", "/CLIENT", "NicCreate", "se")
        until_now(lambda: self._has("phone1", self.device), within=UP_WITHIN, what="the virtual adapter")
        account = [f"/SERVER:{self.server.ipv4}:443", "/HUB:DEFAULT", f"/USERNAME:{USER}", "/NICNAME:se"]
        self._order("phone1", "/CLIENT", "AccountCreate", "lab", *account)
        password = ["lab", f"/PASSWORD:{PASSWORD}", "/TYPE:standard"]
        self._order("phone1", "/CLIENT", "AccountPasswordSet", *password)
        self._order("phone1", "/CLIENT", "AccountConnect", "lab")
        self.phone.ip("address", "add", f"{_SOFTETHER_PHONE}/24", "dev", self.device)
        self.phone.ip("link", "set", self.device, "up")
        self.phone.ip("route", "replace", f"{self.core.ipv4}/32", "via", _SOFTETHER_GATEWAY)
        until_now(self._reaches, within=UP_WITHIN, what="the virtual adapter to reach the core")

    def _reaches(self) -> bool:
        words = ["ping", "-c", "1", "-W", "1", "-I", _SOFTETHER_PHONE, self.core.ipv4]
        return self.phone.run(words, check=False).returncode == 0

    def _has(self, host: str, device: str) -> bool:
        return self.lab[host].run(["ip", "link", "show", "dev", device], check=False).returncode == 0

    def _ready(self, host: str, kind: str) -> bool:
        return self._vpncmd(host, kind, "About").returncode == 0

    def _order(self, host: str, *words: str) -> None:
        done = self._vpncmd(host, *words)
        if done.returncode:
            raise PlatformError(f"vpncmd {' '.join(words)}: {done.stdout[-400:]}")

    def _vpncmd(self, host: str, *words: str) -> subprocess.CompletedProcess[str]:
        """One order. ``words``: /SERVER or /CLIENT, perhaps /HUB, the order and its arguments."""
        first = 2 if words[1].startswith("/HUB:") else 1
        where = "localhost:443" if words[0] == "/SERVER" else "localhost"
        line = ["vpncmd", where, *words[:first], "/CMD", *words[first:]]
        return self.lab[host].run(self._apart("vpncmd", line), check=False, stdin=subprocess.DEVNULL)

    def _daemon(self, host: str, program: str) -> None:
        self.start(host, self._apart(program, [program, "execsvc"]), f"{program}.log")

    def _apart(self, program: str, words: list[str]) -> list[str]:
        """The command with folders of its own in place of those that Debian's build has compiled in.

        There all instances on a machine would share their settings and locks. The mounts end with the
        process: whatever runs in a lab's host has a mount namespace of its own (ip-netns(8)).
        """
        home = self.folder / program
        for name in ("lib/softether", "log/softether", "run/softether", "tmp"):
            (home / name).mkdir(parents=True, exist_ok=True)
        return ["sh", "-ec", _SOFTETHER_APART, str(home), *words]


PRODUCTS: Final[dict[str, type[Product]]] = {
    "opentsm": OpenTsm,
    "ocserv": Ocserv,
    "ocserv-quick": OcservQuick,
    "openvpn": OpenVpn,
    "openvpn-quick": OpenVpnQuick,
    "softether": SoftEther,
}


def make_keys(folder: Path, server: str) -> None:
    """A CA, the server's certificate and a client's."""
    now = datetime.now(UTC)
    authority = create_authority(now)
    write(authority, folder, "ca")
    issued = issue_server(authority, now, names=["bench.invalid"], addresses=[ip_address(server)])
    write(issued, folder, "server")
    write(issue_client(authority, now, name=USER), folder, "client")


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

_SOFTETHER_GATEWAY: Final = "10.64.0.1"
_SOFTETHER_PHONE: Final = "10.64.0.2"
_SOFTETHER_APART: Final = """\
mount --bind "$0/lib" /var/lib
mount --bind "$0/log" /var/log
mount --bind "$0/run" /run
mount --bind "$0/tmp" /tmp
cd /
exec "$@"
"""
