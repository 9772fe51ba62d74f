"""linphonec: linphone without a screen, playing from and recording to files."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Final

from opentsm.client.phone.speech import speech
from opentsm.client.phone.wav import read_wav, write_wav
from opentsm.lab.host import Host
from opentsm.lab.serving import SIP_DOMAIN
from opentsm.lab.waiting import until_now
from opentsm.lab.wan import python_environment
from tests.e2e.interop.baresip import SIP_PASSWORD, Account
from tests.e2e.interop.programs import PATIENCE, Program

CONFIG: Final = """\
[sip]
sip_port=5060
sip_tcp_port=-1
sip_tls_port=-1
default_proxy=0
media_encryption=none

[proxy_0]
reg_proxy=<sip:{server};transport={transport}>
reg_route=<sip:{server};transport={transport};lr>
reg_identity=<sip:{user}@{domain}>
reg_expires=600
reg_sendregister=1
publish=0

[auth_info_0]
username={user}
passwd={password}
realm={domain}
domain={domain}

[rtp]
audio_rtp_port=7078
audio_jitt_comp=60
audio_adaptive_jitt_comp_enabled=0

[sound]
echocancellation=0
agc=0

[video]
enabled=0
capture=0
display=0

[audio_codec_0]
mime=PCMU
rate=8000
enabled=1
"""


class Linphone:
    """One phone."""

    settles: Final = 2.0
    """Seconds after which its jitter buffer has found its length; it cuts out some 50 ms when it has."""

    def __init__(self, host: Host, folder: Path, account: Account, *, seconds: float) -> None:
        home = folder / f"linphone-{account.user}"
        # Without the folder of its database it does nothing at all, and does not say so.
        (home / ".local/share/linphone").mkdir(parents=True)
        self.recording = home / "heard.wav"
        voice = home / "speech.wav"
        voice.write_bytes(write_wav(speech(seconds)))
        config = home / "linphonerc"
        config.write_text(
            CONFIG.format(
                user=account.user,
                server=account.server,
                transport=account.transport,
                domain=SIP_DOMAIN,
                password=SIP_PASSWORD,
            )
        )
        self.program = Program(
            host,
            ["linphonec", "-c", str(config)],
            folder / f"{account.user}.log",
            env={**python_environment(), "HOME": str(home)},
        )
        for line in ("soundcard use files", f"play {voice}", f"record {self.recording}"):
            self.program.type(line)

    def registered(self) -> None:
        until_now(self._says_registered, within=PATIENCE, what=f"linphone to register: {self.program.said}")

    def _says_registered(self) -> bool:
        before = self.program.said.count("registered")
        self.program.type("status register")
        until_now(lambda: self.program.said.count("registered") > before, what="an answer of linphone")
        return "registered, identity" in self.program.said

    def dial(self, user: str) -> None:
        self.program.type(f"call sip:{user}@{SIP_DOMAIN}")

    def in_call(self) -> None:
        self.program.wait_for("connected.", "Media streams established")

    def call_over(self) -> None:
        self.program.wait_for("ended", "Call terminated")

    def quit(self) -> None:
        self.program.finish("quit")

    def heard(self) -> array[int]:
        """Samples of what it heard, after its jitter buffer; once it has ended."""
        return read_wav(self.recording.read_bytes(), str(self.recording))
