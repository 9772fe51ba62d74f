"""SIPp: many calls at once, with speech one way and its echo the other."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from opentsm.client.phone.g711 import PCMU
from opentsm.client.phone.speech import speech
from opentsm.lab.host import Host
from opentsm.lab.serving import SIP_DOMAIN
from tests.e2e.interop.baresip import SIP_PASSWORD
from tests.e2e.interop.programs import Program

SCENARIOS: Final = Path(__file__).with_name("scenarios")

SBC: Final = "10.64.0.2"
PORT: Final = 5060
MEDIA_PORT: Final = 20000

CALLS: Final = 300
RATE: Final = 20
"""Calls per second."""

SECONDS: Final = 3.0
"""Speech of each call; scenarios/caller.xml has it, too."""

ALL_BUT_A_FEW: Final = 0.9
"""Of the packets of all calls. On a machine with time to spare it is 0.99; a SIPp that has to wait for a
processor sends late, and its sockets, which are small, overflow."""


class Sipp:
    """One user's SIPp, at an inner address of its host.

    Args:
        peer: whom the user calls, if anybody.
        server: where its messages go.
    """

    def __init__(
        self, host: Host, folder: Path, address: str, user: str, peer: str = "", server: str = SBC
    ) -> None:
        self._host = host
        self._folder = folder / f"sipp-{user}"
        self._folder.mkdir()
        self._user = user
        self._words = ["-i", address, "-mi", address, "-p", str(PORT), "-mp", str(MEDIA_PORT)]
        self._server = f"{server}:{PORT}"
        fields = self._folder / "fields.csv"
        fields.write_text(f"SEQUENTIAL\n{SIP_DOMAIN};{user};{peer}\n")
        (self._folder / "speech.ul").write_bytes(PCMU.encode(speech(SECONDS)))
        self._words += [
            "-inf",
            str(fields),
            "-au",
            user,
            "-ap",
            SIP_PASSWORD,
            "-nostdin",
            "-trace_err",
            "-error_file",
            "errors.log",
        ]

    def start(self, scenario: str, *options: str) -> Program:
        """Begin a scenario."""
        file = SCENARIOS / f"{scenario}.xml"
        command = ["sipp", self._server, "-sf", str(file), *self._words, *options]
        return Program(self._host, command, self._folder / f"{scenario}.log", cwd=self._folder)

    def register(self) -> None:
        self.run(self.start("register", "-m", "1"))

    def answer(self) -> Program:
        """Take calls until it is ended, and send back what is heard."""
        return self.start("callee", "-rtp_echo")

    def call(self) -> Program:
        """Place all calls; ends with the last."""
        options = ["-m", str(CALLS), "-r", str(RATE), "-l", str(CALLS)]
        return self.start("caller", *options)

    def run(self, program: Program, within: float = 60.0) -> None:
        """Wait for its end; every call has to have succeeded."""
        code = program.process.wait(within)
        errors = self._folder / "errors.log"
        said = errors.read_text(errors="replace")[:2000] if errors.exists() else program.said[-2000:]
        assert code == 0, f"sipp of {self._user} ended with {code}: {said}"
