"""Kamailio and rtpengine on the server, by the very files of examples/kamailio."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final, Self
from urllib.request import urlopen

from opentsm.lab.serving import SIP_DOMAIN
from opentsm.lab.waiting import until_now
from opentsm.sbc.digest import ha1
from tests.e2e.interop.baresip import SIP_PASSWORD
from tests.e2e.interop.programs import Program
from tests.e2e.interop.world import World

FILES: Final = Path(__file__).parents[3] / "examples/kamailio"

ADDRESS: Final = "10.64.0.1"
"""The server's own inner address, as in the files."""


class Kamailio:
    """Both programs, until ``stop``; a context manager.

    Args:
        users: who has an account.
    """

    def __init__(self, world: World, users: tuple[str, ...]) -> None:
        self._host = world.lab["server"]
        folder = world.folder / "kamailio"
        accounts = folder / "accounts"
        shutil.copytree(FILES / "accounts", accounts)
        head = (accounts / "subscriber").read_text().splitlines()[0]
        lines = [f"{user}:{SIP_DOMAIN}:{ha1('MD5', user, SIP_DOMAIN, SIP_PASSWORD)}" for user in users]
        (accounts / "subscriber").write_text("\n".join([head, *lines]) + "\n")
        media = ["rtpengine", f"--config-file={FILES / 'rtpengine.conf'}", "--foreground", "--log-stderr"]
        self._media = Program(self._host, media, folder / "rtpengine.log")
        until_now(self.packets_known, what=f"rtpengine; it said {self._media.said}")
        command = ["kamailio", "-f", str(FILES / "kamailio.cfg"), "-DD", "-E", "-n", "2"]
        command += ["-A", f'ACCOUNTS="text://{accounts}"', "-Y", str(folder), "-w", str(folder)]
        self._proxy = Program(self._host, command, folder / "kamailio.log")
        until_now(self._listens, what=f"Kamailio; it said {self._proxy.said}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._proxy.finish()
        self._media.finish()

    @property
    def said(self) -> str:
        return self._proxy.said + self._media.said

    def metrics(self) -> dict[str, float]:
        """rtpengine's numbers, without labels: values of a name are added up."""
        with self._host.call(urlopen, "http://127.0.0.1:9901/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        found: dict[str, float] = {}
        for line in lines:
            name, _, value = line.rpartition(" ")
            if not line.startswith("#") and value:
                key = name.partition("{")[0]
                found[key] = found.get(key, 0.0) + float(value)
        return found

    def idle(self) -> bool:
        """Whether rtpengine has no call left; it keeps one for some seconds after its end."""
        return self.metrics()["rtpengine_sessions"] == 0

    def packets_known(self) -> bool:
        assert self._media.process.poll() is None, self._media.said
        try:
            return bool(self.metrics())
        except OSError:
            return False

    def _listens(self) -> bool:
        assert self._proxy.process.poll() is None, self._proxy.said
        listening = self._host.run(["ss", "-lnuH", "src", f"{ADDRESS}:5060"]).stdout
        return ADDRESS in listening
