"""A certificate authority and a server certificate, made once: keys take time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from opentsm.admin.certificates import Issued
from tests.unit.client.peer import Peer, make_authority, running_peer, server_certificate


@pytest.fixture(scope="session")
def authority() -> Issued:
    return make_authority()


@pytest.fixture(scope="session")
def certificate(authority: Issued) -> Issued:
    return server_certificate(authority)


@pytest.fixture
def ca(authority: Issued) -> bytes:
    return authority.chain_pem


@pytest.fixture
async def peer(certificate: Issued) -> AsyncIterator[Peer]:
    """A TLS and DTLS peer that offers DDT."""
    async with running_peer(certificate) as peer:
        yield peer
