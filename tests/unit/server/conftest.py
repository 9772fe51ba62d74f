"""Certificates for every test of the server; made once, they cost some milliseconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.server.harness import make_certificates


@pytest.fixture(scope="session")
def certificates_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return folder
