"""baresip: a user agent without a screen that plays a file, and records what it sends and hears."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from opentsm.client.phone.speech import speech
from opentsm.client.phone.wav import read_wav, write_wav
from opentsm.lab.host import Host
from opentsm.lab.serving import SIP_DOMAIN
from tests.e2e.interop.programs import Program

BUFFER: Final = "10-50"
"""Packets in its jitter buffer, at least and at most. 200 ms, for a machine that runs twenty programs is late
now and then, and that is not the fault of a tunnel."""

SIP_PASSWORD: Final = "correct-horse"
"""No space in it: baresip would take what is before it."""

MODULES: Final = "/usr/lib/baresip/modules"

CONFIG: Final = """\
audio_source aufile,{speech}
audio_player aubridge,nowhere
ausrc_srate 8000
auplay_srate 8000
ausrc_channels 1
auplay_channels 1
audio_jitter_buffer_type fixed
audio_jitter_buffer_delay {buffer}
rtp_tos 184
rtp_stats yes
net_interface {interface}
module_path {modules}
module stdio.so
module g711.so
module aubridge.so
module aufile.so
module sndfile.so
module_tmp uuid.so
module_tmp account.so
module_app menu.so
snd_path {recordings}
"""

ACCOUNT: Final = (
    "<sip:{user}@{domain};transport={transport}>;auth_user={user};auth_pass={password};"
    'outbound="sip:{server};transport={transport}";answermode=auto;regint=300;audio_codecs=pcmu\n'
)


@dataclass(frozen=True)
class Account:
    """Who the phone is, and where it registers."""

    user: str
    server: str = "10.64.0.2"
    transport: str = "udp"


class Baresip:
    """One phone. ``prefix`` goes before the command: ``opentsm run ... --``."""

    settles: Final = 0.0

    def __init__(
        self,
        host: Host,
        folder: Path,
        account: Account,
        *,
        seconds: float,
        interface: str = "tsm0",
        prefix: Sequence[str] = (),
    ) -> None:
        self.folder = folder / f"baresip-{account.user}"
        self.recordings = self.folder / "recordings"
        self.recordings.mkdir(parents=True)
        voice = self.folder / "speech.wav"
        voice.write_bytes(write_wav(speech(seconds)))
        (self.folder / "config").write_text(
            CONFIG.format(
                speech=voice, recordings=self.recordings, modules=MODULES, interface=interface, buffer=BUFFER
            )
        )
        line = ACCOUNT.format(
            user=account.user,
            domain=SIP_DOMAIN,
            password=SIP_PASSWORD,
            server=account.server,
            transport=account.transport,
        )
        (self.folder / "accounts").write_text(line)
        (self.folder / "contacts").write_text("")
        self.program = Program(
            host, [*prefix, "baresip", "-f", str(self.folder), "-v"], folder / f"{account.user}.log"
        )

    def registered(self) -> None:
        self.program.wait_for("200 OK")

    def dial(self, user: str) -> None:
        self.program.type(f"/dial sip:{user}@{SIP_DOMAIN}")

    def in_call(self) -> None:
        self.program.wait_for("Call established")

    def hang_up(self) -> None:
        self.program.type("/hangup")

    def call_over(self) -> None:
        self.program.wait_for("terminated", "Call with")

    def quit(self) -> None:
        self.program.finish("/quit")

    def heard(self) -> array[int]:
        """Samples of what it heard, after its jitter buffer; once it has hung up."""
        (file,) = self.recordings.glob("dump-*-dec.wav")
        return read_wav(file.read_bytes(), str(file))
