"""Giving up root once everything that needs it is open."""

from __future__ import annotations

import os
import pwd

from opentsm.errors import ConfigError


def become(user: str) -> None:
    """Become this account, for good.

    Raises:
        ConfigError: there is no such account, or this process may not become it.
    """
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        hint = f"`useradd --system {user}`, or leave `user` out"
        raise ConfigError(f"there is no account {user!r} on this machine", hint=hint) from None
    if os.geteuid() == entry.pw_uid:
        return
    try:
        os.initgroups(user, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    except PermissionError:
        raise ConfigError(f"only root can become {user}", hint="start as root, or leave `user` out") from None
