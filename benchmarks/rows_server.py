"""A real server to whose tables rows can be added: ``python -m benchmarks.rows_server CORE CONFIG``.

CORE is a build of the user plane with the feature ``rows`` (``benchmarks.rows`` makes it); it is put in place
of the installed one before anything imports that. No product has the feature.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Final

CORE_MODULE: Final = "opentsm.userplane._core"


def use_core(path: Path) -> None:
    """Make this file the user plane of the process."""
    spec = importlib.util.spec_from_file_location(CORE_MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[CORE_MODULE] = module


if __name__ == "__main__":
    use_core(Path(sys.argv[1]))
    importlib.import_module("benchmarks.rows_fill").main(Path(sys.argv[2]))
