"""Configuration: TOML or XML in, frozen settings out; every problem with file, line and remedy.

    text ──toml/xml──> tree ──build (schema, kinds, units)──> settings ──check──> settings or ConfigErrors

``schema`` is the one table of all settings; ``docs`` writes the reference and the XML schema from it.
"""

from opentsm.config.diff import Change, Changes, diff
from opentsm.config.errors import ConfigErrors
from opentsm.config.load import check_files, load, loads
from opentsm.config.model import Settings
from opentsm.config.schema import Effect

__all__ = ["Change", "Changes", "ConfigErrors", "Effect", "Settings", "check_files", "diff", "load", "loads"]
