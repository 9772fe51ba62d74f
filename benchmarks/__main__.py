"""``make bench``: measure, print the tables, keep everything in bench-results/."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks.openvpn import OpenVpnTcp, OpenVpnUdp
from benchmarks.plan import Results, busy_control_plane, compare
from benchmarks.report import markdown, svg
from benchmarks.rig import ROOT, Rig
from benchmarks.variants import (
    Ocserv,
    OcservDtls,
    OcservTls,
    OpenTsmDtls,
    OpenTsmTls,
    Plain,
    Variant,
    make_keys,
)
from opentsm.errors import PlatformError
from opentsm.lab.privileges import Mode, ensure_privileges
from opentsm.userplane import _core

VARIANTS: Final[tuple[type[Variant], ...]] = (
    *(Plain, OpenTsmDtls, OpenTsmTls, OcservDtls, OcservTls, OpenVpnUdp, OpenVpnTcp),
)

RESULTS: Final = ROOT / "bench-results"
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
        "load before the run": " ".join(f"{value:.2f}" for value in os.getloadavg()),
        "OpenTSM": f"user plane {_core.version}, Python {platform.python_version()}",
        "OpenSSL": _version(["openssl", "version"]) or ssl.OPENSSL_VERSION,
        "ocserv": _version(["ocserv", "--version"]),
        "openconnect": _version(["openconnect", "--version"]),
        "OpenVPN": _version(["openvpn", "--version"]),
        "GnuTLS": _gnutls(),
    }


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


def parse_arguments() -> argparse.Namespace:
    """The command line: ``make bench BENCH_ARGS='--rounds 7'``."""
    parser = argparse.ArgumentParser(prog="make bench BENCH_ARGS=...", description=__doc__)
    names = [kind.name for kind in VARIANTS]
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count, after one that does not")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each load")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="variants to measure")
    parser.add_argument(
        "--quick", action="store_true", help="two rounds of two seconds, to see that it works"
    )
    parser.add_argument("--no-busy", action="store_true", help="leave the busy control plane out")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 2, 2.0
    return options


def run(options: argparse.Namespace) -> Results:
    """All measurements, in namespaces that are gone afterwards."""
    results = Results()
    kinds = []
    for kind in VARIANTS:
        obstacle = kind.obstacle() if kind.name in options.only else "not asked for"
        if obstacle is None:
            kinds.append(kind)
        else:
            results.left_out[kind.name] = obstacle
            print(f"{kind.name} is left out: {obstacle}", flush=True)
    tool = build_load_tool()
    with tempfile.TemporaryDirectory(prefix="opentsm-bench-") as name, Rig(tool) as rig:
        folder = Path(name)
        make_keys(folder)
        try:
            compare(rig, folder, kinds, options.rounds, options.seconds, _say, results)
            if not options.no_busy:
                busy_control_plane(rig, folder, options.rounds, options.seconds, _say, results)
        except KeyboardInterrupt:
            _say("interrupted; what there is follows")
    return results


def _say(text: str) -> None:
    print(f"-- {text}", flush=True)


def main() -> int:
    """Returns the exit status: 0 if there are results."""
    options = parse_arguments()
    # Also where a shell that started us in the background has told us to ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        mode = ensure_privileges()
        if (os.cpu_count() or 1) < 2:
            raise PlatformError("two processor cores are needed: one for the server, one for all else")
        if mode is Mode.ROOTLESS:
            for kind in VARIANTS:
                if issubclass(kind, Ocserv) and kind.name in options.only:
                    print(f"{kind.name} needs real root; this is a user namespace")
            options.only = [k.name for k in VARIANTS if k.name in options.only and not issubclass(k, Ocserv)]
        facts = machine_facts()
        results = run(options)
    except PlatformError as error:
        print(f"bench: nothing can be measured here: {error}", file=sys.stderr)
        return 1
    facts["load after the run"] = " ".join(f"{value:.2f}" for value in os.getloadavg())
    text = markdown(results, facts)
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    stem.with_suffix(".json").write_text(json.dumps({"facts": facts, **results.as_json()}, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    stem.with_suffix(".svg").write_text(svg(results))
    print(f"\n{text}\nKept as {stem.relative_to(ROOT)}.json, .md and .svg")
    return 0 if results.readings or results.busy else 1


if __name__ == "__main__":
    sys.exit(main())
