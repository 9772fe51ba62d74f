"""OpenVPN as a variant: one daemon for UDP, another for TCP, as its manual has it.

What its manual advises for speed: AES-128-GCM on the data channel (as ours), no compression, socket buffers
of 2 MB, and on TCP ``tcp-nodelay``. The data channel is in user space; the kernel's (DCO) needs a module that
few distributions ship.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import ClassVar, Final

from benchmarks.rig import CORE, SERVER
from benchmarks.variants import Variant

_COMMON = """\
dev {device}
dev-type tun
ca {folder}/ca.pem
cert {folder}/{stem}.pem
key {folder}/{stem}.key
data-ciphers AES-128-GCM
allow-compression no
sndbuf 2097152
rcvbuf 2097152
verb 3
"""

_SERVER = """\
local {server}
port 443
proto {proto}
mode server
tls-server
topology subnet
server 10.64.0.0 255.255.0.0
duplicate-cn
dh none
keepalive 10 60
push "route {core} 255.255.255.255"
"""

_CLIENT = """\
client
nobind
proto {proto}
remote {server} 443
remote-cert-tls server
"""


class OpenVpn(Variant):
    """A server and a client with certificates."""

    proto: ClassVar[tuple[str, str]]

    @classmethod
    def obstacle(cls) -> str | None:
        if not shutil.which("openvpn", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"):
            return "openvpn not installed (Debian: apt-get install openvpn)"
        return None if os.geteuid() == 0 else "OpenVPN needs root"

    def set_up(self) -> None:
        logs = []
        for host, role, text, stem, device in (
            (self.rig.server, self.proto[0], _SERVER, "server", "ovs0"),
            (self.rig.client, self.proto[1], _CLIENT, "client", "ovc0"),
        ):
            log = self.folder / f"{self.name}-{stem}.log"
            log.unlink(missing_ok=True)
            settings = self.folder / f"{self.name}-{stem}.conf"
            settings.write_text(
                text.format(server=SERVER, core=CORE, proto=role)
                + _COMMON.format(folder=self.folder, stem=stem, device=device)
                + ("tcp-nodelay\n" if not self.datagrams and stem == "server" else "")
            )
            self._processes.append(self.rig.start(host, self._command(stem), ready="", log=log))
            logs.append(log)
            self.wait_for(lambda log=log: _is_up(log), f"OpenVPN's {stem} does not come up", log)  # type: ignore[misc]
        found = self.rig.client.run(["ip", "-o", "-4", "address", "show", "dev", "ovc0"]).stdout
        self.inner = found.split()[3].split("/")[0]

    def _command(self, stem: str) -> list[str]:
        settings = self.folder / f"{self.name}-{stem}.conf"
        return [shutil.which("openvpn") or "/usr/sbin/openvpn", "--config", str(settings)]

    def client_command(self) -> list[str]:
        """For one more client beside the one of ``set_up``."""
        return self._command("client")

    @property
    def server_pids(self) -> list[int]:
        return self.rig.server_processes()


UP: Final = "Initialization Sequence Completed"


def _is_up(log: Path) -> bool:
    return log.exists() and UP in log.read_text(errors="replace")


class OpenVpnUdp(OpenVpn):
    """Over UDP."""

    name = "openvpn-udp"
    proto = ("udp", "udp")


class OpenVpnTcp(OpenVpn):
    """Over TCP."""

    name = "openvpn-tcp"
    proto = ("tcp-server", "tcp-client")
    datagrams = False
