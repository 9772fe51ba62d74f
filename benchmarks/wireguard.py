"""wireguard-go as a variant: WireGuard in user space, for kernels that have no module of it.

One peer each, the defaults of its manual page otherwise: there is nothing to tune. Go's scheduler sees the
one core that servers have here.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from benchmarks.rig import CORE, SERVER
from benchmarks.variants import INNER, Variant
from opentsm.lab.host import Host
from opentsm.lab.netns import iproute_batch

PORT: Final = 51820
SERVER_INNER: Final = "10.64.0.1"


class WireGuardGo(Variant):
    """A server and a client with each other's keys."""

    name = "wireguard-go"

    @classmethod
    def obstacle(cls) -> str | None:
        missing = [name for name in ("wireguard-go", "wg") if not shutil.which(name)]
        if missing:
            return (
                f"{', '.join(missing)} not installed (Debian: apt-get install wireguard-go wireguard-tools)"
            )
        if not Path("/dev/net/tun").exists():
            return "there is no /dev/net/tun"
        return None if os.geteuid() == 0 else "wireguard-go needs root"

    def set_up(self) -> None:
        server, client = self._key("server"), self._key("client")
        self._start(self.rig.server, "wgs0", "server", client, f"{INNER}/32", "")
        self._start(self.rig.client, "wgc0", "client", server, f"{CORE}/32", f"Endpoint = {SERVER}:{PORT}\n")
        iproute_batch(
            [f"address add {SERVER_INNER}/16 dev wgs0", "link set wgs0 up"],
            namespace=self.rig.server.namespace,
        )
        iproute_batch(
            [
                *(f"address add {INNER}/32 dev wgc0", "link set wgc0 up"),
                f"route add {CORE} dev wgc0 src {INNER}",
            ],
            namespace=self.rig.client.namespace,
        )
        self.inner = INNER
        # The first packet makes the handshake, after which the server knows where the client is.
        self.rig.client.run(["ping", "-c", "1", "-W", "5", "-I", INNER, CORE])

    def _key(self, who: str) -> str:
        """A new private key in the folder; returns the public one."""
        private = self.rig.server.run(["wg", "genkey"]).stdout
        path = self.folder / f"wg-{who}.key"
        path.write_text(private)
        path.chmod(0o600)
        return self.rig.server.run(["wg", "pubkey"], input=private).stdout.strip()

    def _start(self, host: Host, device: str, who: str, peer: str, allowed: str, more: str) -> None:
        log = self.folder / f"{self.name}-{who}.log"
        log.unlink(missing_ok=True)
        words = ["wireguard-go", "-f", device]
        self._processes.append(self.rig.start(host, words, ready="", log=log))
        up = ["wg", "show", device]
        self.wait_for(lambda: host.run(up, check=False).returncode == 0, "wireguard-go does not come up", log)
        settings = self.folder / f"wg-{who}.conf"
        private = (self.folder / f"wg-{who}.key").read_text().strip()
        settings.write_text(
            f"[Interface]\nPrivateKey = {private}\nListenPort = {PORT}\n"
            f"[Peer]\nPublicKey = {peer}\nAllowedIPs = {allowed}\n{more}"
        )
        settings.chmod(0o600)
        host.run(["wg", "setconf", device, str(settings)])

    @property
    def server_pids(self) -> list[int]:
        return self.rig.server_processes()
