"""The machine, its programs, and the load tool."""

from __future__ import annotations

import json
import os
import platform
import shutil
import ssl
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks.rig import ROOT
from opentsm.errors import PlatformError
from opentsm.userplane import _core

MANIFEST: Final = ROOT / "rust" / "Cargo.toml"


def build_load_tool() -> Path:
    """Build tsm-load (a second, when it is there) and say where it is.

    Raises:
        PlatformError: cargo failed.
    """
    cargo = shutil.which("cargo") or str(Path.home() / ".cargo/bin/cargo")
    command = [cargo, "build", "--release", "--locked", "--quiet", "--no-default-features"]
    command += ["--manifest-path", str(MANIFEST), "--bin", "tsm-load", "--message-format", "json"]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    for line in done.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable"):
            return Path(message["executable"])
    raise PlatformError("tsm-load cannot be built; cargo's words are above")


def machine_facts() -> dict[str, str]:
    """What the figures depend on."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{os.cpu_count()} x {names[0].partition(': ')[2] if names else platform.machine()}",
        "kernel": platform.release(),
        "load before the run": load_average(),
        "OpenTSM": f"user plane {_core.version}, Python {platform.python_version()}",
        "OpenSSL": _version(["openssl", "version"]) or ssl.OPENSSL_VERSION,
        "ocserv": _version(["ocserv", "--version"]),
        "openconnect": _version(["openconnect", "--version"]),
        "OpenVPN": _version(["openvpn", "--version"]),
        "coturn": _version(["turnserver", "--version"]),
        "wireguard-go": _version(["wireguard-go", "--version"]),
        "GnuTLS": _gnutls(),
    }


def load_average() -> str:
    """One, five and fifteen minutes."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def _version(command: list[str]) -> str:
    """The first line a program says of itself; "" if there is none."""
    if not shutil.which(command[0]):
        return "not installed"
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    return next((line.strip() for line in lines if line.strip()), "")


def _gnutls() -> str:
    """The library that ocserv is linked with, by the name of its file."""
    program = shutil.which("ocserv")
    if program is None:
        return "not installed"
    listing = subprocess.run(["ldd", program], check=False, capture_output=True, text=True).stdout
    paths = [Path(line.split()[2]) for line in listing.splitlines() if "libgnutls" in line and "=> /" in line]
    return paths[0].resolve().name if paths else "unknown"
