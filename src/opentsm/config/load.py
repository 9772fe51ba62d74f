"""Files and texts to settings, and the check that the files they name are there.

The only place in ``opentsm.config`` that touches the file system.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from opentsm.config.build import build
from opentsm.config.errors import Problems
from opentsm.config.model import Settings
from opentsm.config.toml import read_toml
from opentsm.config.tree import MAX_FILE_BYTES, Document, unreadable
from opentsm.config.xml import read_xml

_READERS: Final[dict[str, Callable[[str, str], Document]]] = {"toml": read_toml, "xml": read_xml}


def load(path: str | os.PathLike[str]) -> Settings:
    """Read a configuration file; ``.xml`` is XML, everything else TOML.

    Raises:
        ConfigErrors: the file cannot be read, or something in it is wrong. Files that it names are
            not looked at: see ``check_files``.
    """
    file = Path(path)
    text = _read(file)
    return loads(text, source=str(file), format="xml" if file.suffix.lower() == ".xml" else "toml")


def loads(text: str, *, source: str = "<text>", format: str = "toml", base: Path | None = None) -> Settings:
    """Read a configuration from a text.

    Args:
        source: what to call it in messages.
        format: ``toml`` or ``xml``.
        base: directory of relative file names; by default that of ``source``.

    Raises:
        ConfigErrors: something in it is wrong.
        ValueError: the format is neither of the two.
    """
    reader = _READERS.get(format)
    if reader is None:
        raise ValueError(f"format {format!r} is not one of {', '.join(_READERS)}")
    directory = Path(source).parent if base is None else base
    return build(reader(text, source), directory.absolute())


def check_files(settings: Settings) -> None:
    """Check that every file the settings name is there and can be read by this process.

    Raises:
        ConfigErrors: one cannot; all that cannot are in there.
    """
    problems = Problems(settings.source)
    for what, path in _named_files(settings):
        trouble = _trouble(path)
        if trouble:
            problems.add(f"{what} {path}: {trouble}", hint="create the file or correct its name")
    for what, path in _written_files(settings):
        if not path.parent.is_dir():
            problems.add(
                f"{what} {path}: there is no such directory", hint="create the directory or correct the name"
            )
    problems.raise_any()


def _named_files(settings: Settings) -> Iterator[tuple[str, Path]]:
    for profile in settings.tls_profiles.values():
        title = f"tls-profile {profile.name}"
        yield f"{title} certificate", profile.certificate
        yield f"{title} key", profile.key
        if profile.client_ca is not None:
            yield f"{title} client-ca", profile.client_ca
    if settings.authentication.password_file is not None:
        yield "authentication password-file", settings.authentication.password_file
    if settings.authentication.token_file is not None:
        yield "authentication token-file", settings.authentication.token_file
    for sbc in settings.sbcs.values():
        yield f"sbc {sbc.name} users-file", sbc.users_file
    for trunk in settings.trunks.values():
        if trunk.password_file is not None:
            yield f"trunk {trunk.name} password-file", trunk.password_file


def _written_files(settings: Settings) -> Iterator[tuple[str, Path]]:
    """Files that the server makes; their directories must be there."""
    if settings.server.data_log is not None:
        yield "server data-log", settings.server.data_log
    if settings.server.store is not None:
        yield "server store", settings.server.store
    for sbc in settings.sbcs.values():
        for key, path in (("cdr-file", sbc.cdr_file), ("database", sbc.database)):
            if path is not None:
                yield f"sbc {sbc.name} {key}", path


def _trouble(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "not a regular file"
        with path.open("rb"):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _read(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise unreadable(f"cannot be read: {error.strerror or error}", source=str(file)) from None
    if len(data) > MAX_FILE_BYTES:
        raise unreadable(
            f"is larger than {MAX_FILE_BYTES} bytes", source=str(file), hint="is it the right file?"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise unreadable("is not UTF-8 text", source=str(file), line=line, hint="save it as UTF-8") from None
