"""Authenticators from other distributions, found by name in the entry point group ``opentsm.authenticators``.

An entry point names a factory: a callable that takes the options of the configuration (a mapping of plain
values) and returns an ``Authenticator``. In the plug-in's pyproject.toml:

    [project.entry-points."opentsm.authenticators"]
    ldap = "opentsm_ldap:make_authenticator"
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from opentsm.errors import ConfigError

from .model import Authenticator

GROUP: Final = "opentsm.authenticators"


def available() -> dict[str, EntryPoint]:
    """Installed plug-ins by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def load_authenticator(name: str, options: Mapping[str, object]) -> Authenticator:
    """Make the authenticator that a plug-in offers under this name.

    Raises:
        ConfigError: there is no such plug-in, it does not load, or it does not take the options.
    """
    found = available()
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        hint = f"install the distribution that offers it; installed now: {known}"
        raise ConfigError(f"there is no authenticator plug-in {name!r}", hint=hint)
    try:
        made = found[name].load()(options)
    except ConfigError:
        raise
    except Exception as error:
        text = f"the authenticator plug-in {name!r} cannot be used: {type(error).__name__}: {error}"
        raise ConfigError(text, hint=f"it comes from {found[name].value}") from error
    if not callable(getattr(made, "authenticate", None)):
        raise ConfigError(f"the authenticator plug-in {name!r} made something that cannot authenticate")
    authenticator: Authenticator = made
    return authenticator
