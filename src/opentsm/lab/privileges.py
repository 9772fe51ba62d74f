"""May this process make network namespaces, and how: as root, or inside a user namespace."""

from __future__ import annotations

import enum
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from opentsm.errors import PlatformError

NETNS_DIRECTORY: Final = Path("/run/netns")
_REEXECUTED: Final = "OPENTSM_LAB_REEXECUTED"
_UNSHARE: Final = ("unshare", "--user", "--map-root-user", "--net", "--mount")
_NEEDED_CAPABILITIES: Final = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21}

_KERNEL_SWITCHES: Final = (
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=10000"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)
"""Settings that forbid user namespaces: file, the forbidding value, the command that allows them."""


class Mode(enum.Enum):
    """How this process came by the right to make namespaces."""

    ROOT = "root"
    ROOTLESS = "rootless"


def ensure_privileges(argv: Sequence[str] | None = None) -> Mode:
    """Make sure that this process can make namespaces, re-executing it if it must.

    Args:
        argv: the command line to run again inside a user namespace; default: this program's own.

    Returns:
        ``Mode.ROOT`` or ``Mode.ROOTLESS``. Does not return where it re-executes.

    Raises:
        PlatformError: neither way works; the message says why and what to do.
    """
    reason = skip_reason()
    if reason is None:
        return _prepared_mode()
    if os.environ.get(_REEXECUTED):
        raise PlatformError(f"even inside a user namespace: {reason}")
    obstacle = _userns_obstacle()
    if obstacle is not None:
        raise PlatformError(f"{reason}; and a user namespace is no way out: {obstacle}")
    command = list(argv) if argv is not None else [sys.executable, *sys.orig_argv[1:]]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(_UNSHARE[0], [*_UNSHARE, *command], {**os.environ, _REEXECUTED: "1"})


def skip_reason() -> str | None:
    """Why labs cannot be made in this process as it stands; None where they can.

    Inside a user namespace this also lays a private tmpfs over /run/netns, which ``ip netns`` needs.
    """
    if not sys.platform.startswith("linux"):
        return "network namespaces exist on Linux only"
    if shutil.which("ip") is None:
        return "the program `ip` is missing (Debian: apt-get install iproute2)"
    missing = _missing_capabilities()
    if missing:
        return f"this process lacks {', '.join(missing)}; run it as root or under `{' '.join(_UNSHARE)}`"
    return _prepare_netns_directory()


def in_user_namespace() -> bool:
    """Whether this process lives in a user namespace other than the machine's first."""
    return _uid_map()[1:] != ("0", "4294967295")


def outer_uid() -> int:
    """The user id as the machine sees it: also inside a user namespace that maps it to 0."""
    inside, outside, _ = _uid_map()
    return os.getuid() - int(inside) + int(outside)


def _uid_map() -> tuple[str, str, str]:
    fields = Path("/proc/self/uid_map").read_text().split()
    return (fields[0], fields[1], fields[2]) if len(fields) >= 3 else ("0", "0", "4294967295")


def _prepared_mode() -> Mode:
    return Mode.ROOTLESS if in_user_namespace() else Mode.ROOT


def _missing_capabilities() -> list[str]:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
            return [name for name, bit in _NEEDED_CAPABILITIES.items() if not effective >> bit & 1]
    return list(_NEEDED_CAPABILITIES)


def _prepare_netns_directory() -> str | None:
    """Give a user namespace its own /run/netns; None when ``ip netns add`` can work now.

    The directory belongs to the machine's root, so inside a user namespace a tmpfs is laid over it,
    in our mount namespace alone. Where it does not exist and cannot be made, the tmpfs goes over
    /run: nothing the lab runs needs what is there.
    """
    if not in_user_namespace() or _is_private_mount(NETNS_DIRECTORY):
        return None
    target = NETNS_DIRECTORY
    try:
        target.mkdir(exist_ok=True)
    except OSError:
        target = NETNS_DIRECTORY.parent
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "mode=0755", "opentsm-lab", str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        return f"a private {target} cannot be mounted: {mounted.stderr.strip()}"
    NETNS_DIRECTORY.mkdir(exist_ok=True)
    return None


def _is_private_mount(path: Path) -> bool:
    """Whether a file system named by us lies at ``path`` or over its parent (in /run)."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[1] == "opentsm-lab" and before.split()[4] in (str(path), str(path.parent)):
            return True
    return False


def _userns_obstacle() -> str | None:
    if shutil.which("unshare") is None:
        return "the program `unshare` is missing (Debian: apt-get install util-linux)"
    for file, forbidding, remedy in _KERNEL_SWITCHES:
        path = Path(file)
        if path.exists() and path.read_text().strip() == forbidding:
            return f"the kernel setting {file} is {forbidding}; as root: {remedy}"
    probe = subprocess.run([*_UNSHARE, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        return f"{probe.stderr.strip()}. In a container, start it with --privileged, or run as root"
    return None
