"""Fixtures: a lab, a server in it, its core behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from opentsm.lab.serving import ServerProcess, Shape, make_credentials
from opentsm.lab.topology import Lab, LabSpec


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(LabSpec(emulate=False)) as lab:
        yield lab


@pytest.fixture
def shape() -> Shape:
    """Overridden by tests that want another server."""
    return Shape()


@pytest.fixture
def server(lab: Lab, tmp_path: Path, shape: Shape) -> Iterator[ServerProcess]:
    make_credentials(tmp_path, lab["server"])
    server = ServerProcess(lab["server"], tmp_path, shape)
    server.start()
    yield server
    if server.process is not None:
        server.stop()
