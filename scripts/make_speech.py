"""Makes the built-in voice, src/opentsm/client/phone/speech.wav.gz: espeak-ng says a few sentences.

    apt-get install espeak-ng sox && python3 scripts/make_speech.py

Only needed to change it. 8 kHz, 16 bit, peak at -6 dB; samples are rounded to 12 bits, 20 dB below what
G.711 adds, because that halves the compressed size. The sentences have most phonemes of English, and pauses.
"""

from __future__ import annotations

import array
import gzip
import io
import subprocess
import tempfile
import wave
from pathlib import Path
from typing import Final

TEXT: Final = (
    "Good morning. Can you hear each word? The judge chose thick soup, fresh fish and yellow beans. "
    "Five voices sing through the rainy night."
)
LEAD: Final = 0.4
"""Seconds of silence before the first word: receivers settle before there is something to lose."""

TAIL: Final = 0.6
STEP: Final = 16
"""Samples are multiples of this: 12 of 16 bits."""

ROOT: Final = Path(__file__).resolve().parent.parent


def spoken() -> array.array[int]:
    """The sentences as espeak-ng says them and sox converts them, without dither."""
    with tempfile.TemporaryDirectory() as folder:
        raw, ready = str(Path(folder, "raw.wav")), str(Path(folder, "ready.wav"))
        voice = ["-v", "en-us", "-s", "160", "-p", "45"]
        subprocess.run(["espeak-ng", *voice, "-w", raw, TEXT], check=True)
        form = ["-r", "8000", "-c", "1", "-b", "16"]
        effects = ["norm", "-6", "pad", str(LEAD), str(TAIL)]
        subprocess.run(["sox", "-D", raw, *form, ready, *effects], check=True)
        with wave.open(ready) as file:
            return array.array("h", file.readframes(file.getnframes()))


def packed(samples: array.array[int]) -> bytes:
    """A compressed WAV file, the same bytes every time."""
    rounded = array.array("h", [round(sample / STEP) * STEP for sample in samples])
    plain = io.BytesIO()
    with wave.open(plain, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(rounded.tobytes())
    return gzip.compress(plain.getvalue(), 9, mtime=0)


if __name__ == "__main__":
    target = ROOT / "src/opentsm/client/phone/speech.wav.gz"
    target.write_bytes(packed(spoken()))
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size} bytes")
