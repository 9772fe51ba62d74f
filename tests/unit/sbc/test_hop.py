from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opentsm.errors import RemoteProtocolError
from opentsm.sbc.hop import FlowTokens, Hop

HOPS = [
    Hop("udp", ("10.64.0.1", 5060), ("10.64.0.2", 5062)),
    Hop("tcp", ("fd00::1", 5060), ("fd00::2", 40000)),
]


@pytest.mark.parametrize("hop", HOPS)
def test_a_token_gives_its_hop_back(hop: Hop) -> None:
    token = FlowTokens(b"key").token(hop)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", token)
    assert FlowTokens(b"key").hop_untrusted(token) == hop


def test_only_the_holder_of_the_key_makes_tokens() -> None:
    token = FlowTokens(b"other").token(HOPS[0])
    with pytest.raises(RemoteProtocolError, match="bad-flow-token"):
        FlowTokens(b"key").hop_untrusted(token)


@given(st.text(max_size=80), st.integers(0, 30), st.characters())
def test_a_changed_token_is_no_token(text: str, at: int, character: str) -> None:
    tokens = FlowTokens(b"key")
    good = tokens.token(HOPS[0])
    for token in (text, good[:at] + character + good[at + 1 :]):
        if token != good:
            with pytest.raises(RemoteProtocolError):
                tokens.hop_untrusted(token)
