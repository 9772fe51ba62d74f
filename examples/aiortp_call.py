"""Somebody else's RTP library (aiortp) on a tunnel, unchanged: speech to the server's echo, and back.

The library makes its own sockets; while the tunnel is lent to the event loop, they are inner ones. Half-way,
the media switch is turned: the library does not notice.

pip install aiortp; python aiortp_call.py tls://host:443 ca.pem [user password]
"""

import asyncio
import sys
from collections import Counter

from aiortp import RTPSession

import opentsm
from opentsm.client.phone.speech import speech
from opentsm.client.testcall import echo_address

SECONDS = 4
FRAME = 160  # samples of 20 ms


async def say(session: RTPSession, pcm: bytes) -> None:
    for begin in range(0, len(pcm), 2 * FRAME):
        session.send_audio_pcm_auto(pcm[begin : begin + 2 * FRAME])
        await asyncio.sleep(0.02)


async def main(server: str, ca: str, username: str | None = None, password: str | None = None) -> None:
    async with opentsm.connect(server, ca=ca, username=username, password=password) as tunnel:
        heard = Counter[str]()
        with opentsm.inner_endpoints(tunnel) as sockets:
            session = await RTPSession.create(
                local_addr=(str(tunnel.inner_address), 0), remote_addr=echo_address(tunnel), payload_type=0
            )
        rtp = sockets[0]

        def on_audio(pcm: bytes, timestamp: int) -> None:
            heard[opentsm.Path(rtp.get_extra_info("received_path")).name.lower()] += len(pcm) // 2 // FRAME

        session.on_audio = on_audio
        words = speech(SECONDS).tobytes()
        await say(session, words[: len(words) // 2])
        rtp.set_mode(opentsm.PathMode.DATAGRAM)
        await tunnel.wait_ddt_enabled(rtp)
        await say(session, words[len(words) // 2 :])
        await asyncio.sleep(0.2)  # the last echoes are on their way
        lost = session.stats["packets_lost"]
        await session.close()
        print(f"aiortp on {rtp.get_extra_info('sockname')[0]}: {lost} packets lost")
        for path, frames in heard.items():
            print(f"{frames} frames heard by the {path} tunnel")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
