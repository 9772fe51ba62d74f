"""ocserv with openconnect as a variant, and its settings wherever it is measured."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import ClassVar, Final

from benchmarks.rig import CORE, SERVER
from benchmarks.variants import PASSWORD, USER, Variant

AS_SHIPPED: Final = "NORMAL:%SERVER_PRECEDENCE:%COMPAT:-VERS-SSL3.0:-VERS-TLS1.0:-VERS-TLS1.1"
QUICKEST: Final = "NORMAL:%SERVER_PRECEDENCE:-CIPHER-ALL:+AES-128-GCM:-VERS-ALL:+VERS-TLS1.2:+VERS-DTLS1.2"
"""The comments of the sample configuration call AES-GCM the quickest; 128 bits are what OpenTSM has."""

# From the sample configuration and its comments: the isolation of workers costs about 2 %, compression is off
# unless asked for, `rate-limit-ms` and `max-ban-score` are protections that a crowd from one address would
# run into.
_SETTINGS: Final = """\
auth = "plain[passwd={folder}/ocpasswd]"
listen-host = {listen}
tcp-port = 443
{udp}
run-as-user = root
run-as-group = root
socket-file = {folder}/ocserv.sock
pid-file = {folder}/ocserv.pid
server-cert = {folder}/server.pem
server-key = {folder}/server.key
isolate-workers = false
max-clients = {clients}
max-same-clients = {clients}
rate-limit-ms = 0
keepalive = 32400
dpd = {dpd}
mobile-dpd = 1800
switch-to-tcp-timeout = {to_tcp}
try-mtu-discovery = false
compression = false
tls-priorities = "{priorities}"
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


def write_settings(
    folder: Path,
    *,
    listen: str,
    core: str,
    user: str,
    password: str,
    udp: bool = True,
    dpd: int = 90,
    to_tcp: int = 25,
    priorities: str = AS_SHIPPED,
    clients: int = 256,
) -> Path:
    """The server's settings, its one account and the client's script ``up.sh``.

    Args:
        folder: where; the keys are there.
        listen: the server's address. core: the address behind it.
        dpd, to_tcp: seconds until a silent client, a silent datagram path is noticed.
        clients: at most so many at once.

    Returns:
        the settings' path.
    """
    subprocess.run(
        ["ocpasswd", "-c", str(folder / "ocpasswd"), user],
        input=f"{password}\n{password}\n",
        text=True,
        check=True,
        capture_output=True,
    )
    script = folder / "up.sh"
    script.write_text(CLIENT_SCRIPT.format(core=core))
    script.chmod(0o755)
    path = folder / "ocserv.conf"
    path.write_text(
        _SETTINGS.format(
            folder=folder,
            listen=listen,
            core=core,
            udp="udp-port = 443" if udp else "",
            dpd=dpd,
            to_tcp=to_tcp,
            priorities=priorities,
            clients=clients,
        )
    )
    return path


def client_words(folder: Path, server: str, user: str, device: str, *, udp: bool = True) -> list[str]:
    """openconnect's command; the password is its first line of input."""
    words = ["openconnect", "--protocol=anyconnect", "--non-inter", "--passwd-on-stdin", "--user", user]
    words += ["--cafile", str(folder / "ca.pem"), "--script", str(folder / "up.sh"), "--interface", device]
    return [*words, *([] if udp else ["--no-dtls"]), f"https://{server}"]


class Ocserv(Variant):
    """One server, one client."""

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
        settings = write_settings(
            folder,
            listen=SERVER,
            core=CORE,
            user=USER,
            password=PASSWORD,
            udp=self.udp,
            priorities=QUICKEST,
        )
        daemon = ["ocserv", "--foreground", "--config", str(settings)]
        self._processes.append(self.rig.start(self.rig.server, daemon, ready="", log=log))
        self.wait_for(lambda: "443" in self._listening(), "ocserv does not listen", log)
        client = self.rig.start(
            self.rig.client,
            client_words(folder, SERVER, USER, "oc0", udp=self.udp),
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
