"""Makes everything a make target needs: Debian packages, the virtual environment, the Rust user plane.

Standard library only, because it runs before anything is installed. Run it through ``scripts/bootstrap``.
Each step looks before it acts, so a second run with nothing changed only reads and hashes some files.

Environment: ``OPENTSM_NO_APT=1`` never installs Debian packages, only says which are missing.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

ROOT: Final = Path(__file__).resolve().parent.parent
VENV: Final = ROOT / ".venv"
PYTHON: Final = VENV / "bin" / "python"
STAMP: Final = VENV / "opentsm-bootstrap.json"

# Programs for administrators are not on everybody's PATH in Debian, but can be run from there.
SEARCH_PATH: Final = os.pathsep.join(
    [os.environ.get("PATH", os.defpath), str(Path.home() / ".cargo/bin"), "/usr/local/sbin:/usr/sbin:/sbin"]
)


# -- what has to be there -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Need:
    """One thing that a Debian package provides.

    Args:
        package: name of the Debian package.
        present: whether the thing is already there, from whatever source.
        without: what cannot be done without it.
    """

    package: str
    present: Callable[[], bool]
    without: str


def has_program(*names: str) -> Callable[[], bool]:
    """A check that every one of these programs can be found."""
    return lambda: all(shutil.which(name, path=SEARCH_PATH) for name in names)


def succeeds(command: Sequence[str]) -> bool:
    """Run a program without a word; whether it exits with 0."""
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True)
    return done.returncode == 0


def has_openssl_headers() -> bool:
    """OpenSSL's headers, where the openssl-sys crate will look for them."""
    if os.environ.get("OPENSSL_DIR"):
        return True
    program = shutil.which("pkg-config", path=SEARCH_PATH)
    return program is not None and succeeds([program, "--exists", "openssl >= 3"])


def has_ensurepip() -> bool:
    """venv can put pip into a new environment (Debian splits this off from python3)."""
    return importlib.util.find_spec("ensurepip") is not None


def venv_package() -> str:
    """Debian's package with ensurepip for the Python that runs this."""
    return f"python3.{sys.version_info.minor}-venv"


def has_python_headers() -> bool:
    """C code can be built for the Python that runs this (Debian splits this off too)."""
    return Path(sysconfig.get_paths()["include"], "Python.h").exists()


HEADERS: Final = Need(
    f"python3.{sys.version_info.minor}-dev", has_python_headers, "speech is not scored by PESQ"
)

GROUPS: Final[Mapping[str, Sequence[Need]]] = {
    "build": (
        Need("gcc", has_program("cc"), "nothing can be linked"),
        Need("libc6-dev", lambda: Path("/usr/include/stdio.h").exists(), "nothing can be linked"),
        Need("pkg-config", has_program("pkg-config"), "OpenSSL cannot be found"),
        Need("libssl-dev", has_openssl_headers, "the user plane's TLS and DTLS cannot be built"),
        Need(venv_package(), has_ensurepip, "there is no virtual environment"),
    ),
    "test": (
        Need("iproute2", has_program("ip"), "tests in network namespaces are skipped"),
        Need("tcpdump", has_program("tcpdump"), "tests that look at the outer wire are skipped"),
        Need("iputils-ping", has_program("ping"), "tests that ping through a tunnel are skipped"),
        HEADERS,
    ),
    "demo": (Need("iproute2", has_program("ip"), "the demo has no networks to run in"), HEADERS),
    "bench": (
        Need("iproute2", has_program("ip"), "there is no rig to measure on"),
        Need("ocserv", has_program("ocserv"), "the comparison with ocserv is left out"),
        Need("openconnect", has_program("openconnect"), "the comparison with ocserv is left out"),
        Need("openvpn", has_program("openvpn"), "the comparison with OpenVPN is left out"),
        Need("coturn", has_program("turnserver"), "the comparison with coturn is left out"),
        Need("wireguard-go", has_program("wireguard-go"), "the comparison with wireguard-go is left out"),
        Need("wireguard-tools", has_program("wg"), "the comparison with wireguard-go is left out"),
        Need("softether-vpnserver", has_program("vpnserver"), "the comparison with SoftEther is left out"),
        Need("softether-vpnclient", has_program("vpnclient"), "the comparison with SoftEther is left out"),
        Need("softether-vpncmd", has_program("vpncmd"), "the comparison with SoftEther is left out"),
        HEADERS,
    ),
    "interop": (
        Need("baresip-core", has_program("baresip"), "calls by baresip are left out"),
        Need("linphone-cli", has_program("linphonec"), "calls by linphone are left out"),
        Need("sip-tester", has_program("sipp"), "calls by SIPp are left out"),
        Need("kamailio", has_program("kamailio"), "calls through Kamailio are left out"),
        Need("rtpengine-daemon", has_program("rtpengine"), "calls through rtpengine are left out"),
    ),
}

# Debian starts these when it installs them; they would hold the ports that OpenTSM is about.
UNWANTED_SERVICES: Final = {
    "ocserv": ("ocserv.socket", "ocserv.service"),
    "openvpn": ("openvpn.service",),
    "coturn": ("coturn.service",),
    "softether-vpnserver": ("softether-vpnserver.service",),
    "softether-vpnclient": ("softether-vpnclient.service",),
    "kamailio": ("kamailio.service",),
    "rtpengine-daemon": ("rtpengine-daemon.service",),
}


# -- talking ------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """One progress line."""
    print(f"==> {text}", flush=True)


def stop(text: str) -> NoReturn:
    """Give up with an explanation."""
    print(f"bootstrap: {text}", file=sys.stderr, flush=True)
    raise SystemExit(1)


def run_quietly(command: Sequence[str], *, env: Mapping[str, str] | None = None, why: str) -> None:
    """Run a program without its chatter; show all of it when the program fails."""
    done = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        env=None if env is None else dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if done.returncode != 0:
        print(done.stdout, file=sys.stderr)
        stop(f"{why} failed. The command was:\n  {shlex.join(command)}")


# -- Debian packages ----------------------------------------------------------------------------------


def apt_prefix() -> list[str] | None:
    """The words before apt-get that make it work without a question, or None if nothing does."""
    if os.environ.get("OPENTSM_NO_APT") or not shutil.which("apt-get"):
        return None
    if os.geteuid() == 0:
        return ["env"]
    if shutil.which("sudo") and succeeds(["sudo", "-n", "true"]):
        return ["sudo", "-n", "env"]
    return None


def apt_install(prefix: Sequence[str], packages: Sequence[str]) -> bool:
    """Install Debian packages; True if it worked."""
    apt = [*prefix, "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300"]
    install = [*apt, "install", "--no-install-recommends", *packages]
    # The package list of a fresh machine is empty or old; look again before giving up.
    return succeeds(install) or (succeeds([*apt, "update"]) and succeeds(install))


def silence_services(prefix: Sequence[str], packages: Iterable[str]) -> None:
    """Stop what Debian started by itself when we installed these packages."""
    if not Path("/run/systemd/system").exists():
        return
    for package in packages:
        for unit in UNWANTED_SERVICES.get(package, ()):
            say(f"stopping {unit}, which Debian started")
            succeeds([*prefix, "systemctl", "disable", "--now", unit])


def missing_needs(groups: Iterable[str]) -> list[Need]:
    """What the groups need and this machine does not have, each package once."""
    found: dict[str, Need] = {}
    for group in groups:
        for need in GROUPS[group]:
            if need.package not in found and not need.present():
                found[need.package] = need
    return list(found.values())


def provide_packages(groups: Sequence[str]) -> None:
    """Install what is missing where we may; otherwise say what to type, and stop if the build needs it."""
    missing = missing_needs(groups)
    if not missing:
        return
    names = [need.package for need in missing]
    prefix = apt_prefix()
    if prefix is not None:
        say(f"installing Debian packages: {' '.join(names)}")
        if apt_install(prefix, names):
            silence_services(prefix, names)
        missing = missing_needs(groups)
    if missing:
        explain_missing(missing, fatal=bool(missing_needs(["build"]) if "build" in groups else ()))


def explain_missing(missing: Sequence[Need], *, fatal: bool) -> None:
    """Say what is not there, what that costs, and the exact command."""
    print("bootstrap: some things are missing on this machine:", file=sys.stderr)
    for need in missing:
        print(f"  {need.package}: without it {need.without}", file=sys.stderr)
    names = " ".join(need.package for need in missing)
    if shutil.which("apt-get"):
        sudo = "" if os.geteuid() == 0 else "sudo "
        print(f"Type this, then try again:\n  {sudo}apt-get install {names}", file=sys.stderr)
    else:
        print("These are Debian's names; install what provides the same here.", file=sys.stderr)
    if fatal:
        raise SystemExit(1)
    print("Going on without.", file=sys.stderr, flush=True)


# -- the Rust toolchain -------------------------------------------------------------------------------


def version_tuple(text: str) -> tuple[int, ...]:
    """``1.85.0-nightly`` -> (1, 85, 0)."""
    return tuple(int(part) for part in text.split("-")[0].split(".") if part.isdigit())


def check_cargo() -> None:
    """Stop unless there is a cargo that is new enough for rust/Cargo.toml."""
    package = tomllib.loads((ROOT / "rust/Cargo.toml").read_text()).get("package", {})
    wanted = str(package.get("rust-version", "1.85"))
    cargo = shutil.which("cargo", path=SEARCH_PATH)
    if cargo is None:
        stop(
            f"there is no Rust toolchain (cargo {wanted} or newer).\n"
            "  Install one with rustup as your user, or a recent `cargo` package, then try again."
        )
    answer = subprocess.run([cargo, "--version"], check=False, capture_output=True, text=True, cwd=ROOT)
    words = answer.stdout.split()
    found = words[1] if len(words) > 1 else "0"
    if version_tuple(found) < version_tuple(wanted):
        stop(
            f"cargo {found} is too old; {wanted} or newer is needed.\n"
            "  `rustup update stable` brings a new one; Debian 12's own package is too old."
        )


# -- the virtual environment --------------------------------------------------------------------------


def digest(parts: Iterable[bytes]) -> str:
    """SHA-256 of parts whose borders count."""
    state = hashlib.sha256()
    for part in parts:
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.hexdigest()


def read_stamp() -> dict[str, str]:
    """What the last successful run left, by step; empty where there was none."""
    try:
        content = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in content.items()} if isinstance(content, dict) else {}


def write_stamp(stamp: Mapping[str, str]) -> None:
    """Remember finished steps; a run that is killed half-way leaves the old stamp."""
    fresh = STAMP.with_suffix(".new")
    fresh.write_text(json.dumps(stamp, indent=1))
    fresh.replace(STAMP)


def base_digest() -> str:
    """Changes when the environment must be made anew: another Python, or the tree was moved or copied."""
    return digest([sys.version.encode(), str(Path(sys.executable).resolve()).encode(), str(VENV).encode()])


def provide_venv() -> None:
    """Make ``.venv`` unless the one that is there was made by this Python in this place."""
    if PYTHON.exists() and read_stamp().get("base") == base_digest():
        return
    say(f"making the virtual environment .venv (Python {platform.python_version()})")
    if VENV.exists():
        shutil.rmtree(VENV)
    run_quietly([sys.executable, "-m", "venv", str(VENV)], why="making the virtual environment")
    write_stamp({"base": base_digest()})


def requirement_files(name: str) -> Iterator[Path]:
    """The named requirements file and those it includes."""
    path = ROOT / "requirements" / f"{name}.txt"
    yield path
    for line in path.read_text().splitlines():
        if line.startswith("-r "):
            yield from requirement_files(line.removeprefix("-r ").strip().removesuffix(".txt"))


def provide_requirements(name: str) -> None:
    """Install the pinned Python packages of ``requirements/NAME.txt`` unless they are installed."""
    wanted = digest(path.read_bytes() for path in requirement_files(name))
    stamp = read_stamp()
    if stamp.get(name) == wanted:
        return
    say(f"installing Python packages of requirements/{name}.txt")
    pip = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"]
    file = ROOT / "requirements" / f"{name}.txt"
    run_quietly([*pip, "-r", str(file)], why="installing the Python packages")
    write_stamp({**stamp, name: wanted})


SCORING: Final = {"test", "demo", "bench"}
"""Groups that score speech where that can be installed."""


def provide_scoring() -> None:
    """Install what scores speech; where that fails, say so in one line and go on without."""
    try:
        provide_requirements("quality")
    except SystemExit:
        say("going on without PESQ: speech is not scored, nothing else is lost")


# -- the user plane -----------------------------------------------------------------------------------

NOT_SOURCES: Final = {"target", "corpus", "artifacts", "coverage"}


def rust_sources() -> Iterator[Path]:
    """Every file that can change what is built, in a fixed order."""
    for folder, names, files in os.walk(ROOT / "rust"):
        names[:] = sorted(name for name in names if name not in NOT_SOURCES)
        for name in sorted(files):
            yield Path(folder, name)


def native_digest() -> str:
    """Changes when the user plane must be built again: its content counts, not the files' times."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    parts = [json.dumps([project["build-system"], project["project"], project["tool"]["maturin"]]).encode()]
    for path in rust_sources():
        parts += [str(path.relative_to(ROOT)).encode(), path.read_bytes()]
    return digest(parts)


def build_environment() -> dict[str, str]:
    """The environment in which maturin finds our .venv and no other one."""
    env = {k: v for k, v in os.environ.items() if k not in ("CONDA_PREFIX", "PYTHONHOME", "PYTHONPATH")}
    return env | {"VIRTUAL_ENV": str(VENV), "PATH": f"{VENV / 'bin'}{os.pathsep}{SEARCH_PATH}"}


def provide_native() -> None:
    """Build the user plane and install the package in place, unless neither would change anything."""
    wanted = native_digest()
    stamp = read_stamp()
    built = any((ROOT / "src/opentsm/userplane").glob("_core*.so"))
    if built and stamp.get("native") == wanted:
        return
    say("building the user plane (a few minutes the first time, seconds later)")
    started = time.monotonic()
    command = [str(VENV / "bin/maturin"), "develop", "--release", "--locked", "--quiet"]
    run_quietly(command, env=build_environment(), why="building the user plane")
    say(f"built in {time.monotonic() - started:.0f} s")
    write_stamp({**stamp, "native": wanted})


# -- all together -------------------------------------------------------------------------------------


@contextmanager
def only_one() -> Iterator[None]:
    """Two makes in one tree take turns instead of breaking each other's environment."""
    with (ROOT / ".bootstrap.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another bootstrap is at work in this tree; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(groups: Sequence[str]) -> None:
    """Provide for the groups named; ``lint`` needs all of the build but the user plane itself."""
    unknown = [group for group in groups if group not in GROUPS and group != "lint"]
    if unknown or not groups:
        stop(f"usage: scripts/bootstrap GROUP...   groups: {', '.join([*GROUPS, 'lint'])}")
    if not os.access(ROOT, os.W_OK):
        stop(f"{ROOT} cannot be written by this user; work in a clone of your own.")
    with only_one():
        provide_packages(["build", *(group for group in groups if group in GROUPS and group != "build")])
        check_cargo()
        provide_venv()
        provide_requirements("dev")
        if SCORING.intersection(groups):
            provide_scoring()
        if set(groups) != {"lint"}:
            provide_native()


if __name__ == "__main__":
    main(sys.argv[1:])
