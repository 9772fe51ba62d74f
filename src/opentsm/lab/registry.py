"""Labs on this machine: names that tell whose they are, and removal of what the dead left behind.

A namespace is called ``opentsm-PID-START-N-HOST``. PID and START (the process's start in clock
ticks) name one process for ever, even after its pid is used again; N counts its labs. A directory of
the same name holds control sockets and ``lab.json``, from which ``opentsm lab status`` learns about
labs of other processes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import stat
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from opentsm.errors import PlatformError
from opentsm.lab.netns import iproute, processes_inside
from opentsm.lab.privileges import NETNS_DIRECTORY, outer_uid

PREFIX: Final = "opentsm-"
_NAME: Final = re.compile(r"opentsm-(\d+)-(\d+)-(\d+)(?:-([a-z0-9]+))?")
_TERMINATE_GRACE: Final = 2.0
"""Seconds that a stale lab's processes have to end by themselves before they are killed."""

_counter = itertools.count(1)


@dataclass(slots=True)
class LabRecord:
    """What other processes may know about a running lab (``lab.json``).

    Args:
        lab: its id, also the prefix of its namespaces.
        pid: the process that owns it.
        rootless: whether one must enter that process's user namespace first.
        hosts: host name -> namespace.
        addresses: host name -> its main addresses.
        sites: number of sites.
        emulated: whether sites have an emulator.
    """

    lab: str
    pid: int
    rootless: bool
    hosts: dict[str, str] = field(default_factory=dict)
    addresses: dict[str, list[str]] = field(default_factory=dict)
    sites: int = 1
    emulated: bool = True


def new_lab_id() -> str:
    """A name no other lab on this machine has."""
    pid = os.getpid()
    return f"{PREFIX}{pid}-{_start_ticks(pid)}-{next(_counter)}"


def state_directory() -> Path:
    """This user's directory for lab state; made on first use, mode 0700.

    Raises:
        PlatformError: somebody else owns a directory of that name.
    """
    path = Path(tempfile.gettempdir()) / f"opentsm-lab-{outer_uid()}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PlatformError(f"{path} is not a private directory of this user; remove it and try again")
    return path


def lab_directory(lab: str) -> Path:
    return state_directory() / lab


def write_record(record: LabRecord) -> None:
    directory = lab_directory(record.lab)
    directory.mkdir(mode=0o700, exist_ok=True)
    temporary = directory / "lab.json.new"
    temporary.write_text(json.dumps(asdict(record), indent=1))
    temporary.rename(directory / "lab.json")


def running_labs() -> list[LabRecord]:
    """Labs of this user whose process is alive, oldest first."""
    records = []
    for directory in sorted(state_directory().glob(f"{PREFIX}*"), key=lambda path: path.stat().st_mtime):
        if owner_alive(directory.name):
            with contextlib.suppress(OSError, ValueError, TypeError):
                records.append(LabRecord(**json.loads((directory / "lab.json").read_text())))
    return records


def owner_alive(name: str) -> bool:
    """Whether the process that a lab's or namespace's name speaks of still runs."""
    match = _NAME.fullmatch(name)
    return match is not None and _start_ticks(int(match[1])) == int(match[2])


def clean() -> list[str]:
    """Remove what labs of dead processes left: their processes, namespaces and directories.

    Returns:
        the names of the removed namespaces and directories.
    """
    removed = []
    for namespace in _stale(NETNS_DIRECTORY):
        remove_namespace(namespace)
        removed.append(namespace)
    for directory in _stale(state_directory()):
        shutil.rmtree(state_directory() / directory, ignore_errors=True)
        removed.append(directory)
    return removed


def remove_namespace(namespace: str) -> None:
    """End the processes inside a namespace and delete it; the kernel takes its devices with it."""
    with contextlib.suppress(PlatformError):
        _end_processes(namespace)
    iproute("netns", "del", namespace)


def _stale(directory: Path) -> list[str]:
    if not directory.is_dir():
        return []
    return sorted(
        entry.name
        for entry in directory.iterdir()
        if _NAME.fullmatch(entry.name) and not owner_alive(entry.name)
    )


def _end_processes(namespace: str) -> None:
    """SIGTERM, then SIGKILL: a process left inside would keep the namespace alive."""
    me = os.getpid()
    for number, patience in ((signal.SIGTERM, _TERMINATE_GRACE), (signal.SIGKILL, _TERMINATE_GRACE)):
        inside = [pid for pid in processes_inside(namespace) if pid != me]
        for pid in inside:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        _wait_gone(inside, patience)


def _wait_gone(pids: list[int], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(_running(pid) for pid in pids):
        time.sleep(0.01)


def _running(pid: int) -> bool:
    """A zombie no longer runs: it has left its namespace and waits for its parent only."""
    fields = _stat_fields(pid)
    return fields is not None and fields[0] not in "ZX"


def _start_ticks(pid: int) -> int:
    fields = _stat_fields(pid)
    return int(fields[19]) if fields is not None and fields[0] not in "ZX" else -1


def _stat_fields(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on (proc(5), field 3): the name may hold spaces."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
