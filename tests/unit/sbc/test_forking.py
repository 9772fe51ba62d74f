from __future__ import annotations

import pytest

from opentsm.sbc.forking import Branch, Target, best
from opentsm.sbc.hop import Hop
from opentsm.sbc.message import Request, Response
from opentsm.sbc.transactions import TransactionKey

HOP = Hop("udp", ("10.64.0.1", 5060), ("10.64.0.2", 5060))


def branches(*codes: int) -> list[Branch]:
    key = TransactionKey("client", "b", "INVITE")
    request = Request("INVITE", "sip:b@x")
    return [
        Branch(
            key, Target(HOP, "sip:b@x"), request, "t", final=Response(code, "", headers=[("X", str(code))])
        )
        for code in codes
    ]


@pytest.mark.parametrize(
    ("codes", "chosen"),
    [
        ((486, 404), 486),
        ((503, 486), 486),
        ((503,), 500),
        ((408, 480), 480),
        ((486, 603, 302), 603),
        ((486, 302), 302),
        ((500, 486), 486),
        ((486, 407), 407),
        ((404, 484), 484),
    ],
)
def test_the_best_of_several_failures(codes: tuple[int, ...], chosen: int) -> None:
    response = best(branches(*codes))
    assert response is not None
    assert response.code == chosen


def test_challenges_of_all_branches_go_together() -> None:
    both = branches(401, 407)
    for branch, name in zip(both, ("WWW-Authenticate", "Proxy-Authenticate"), strict=True):
        assert branch.final is not None
        branch.final.headers.append((name, "Digest x"))
    response = best(both)
    assert response is not None
    assert response.get("WWW-Authenticate") == response.get("Proxy-Authenticate") == "Digest x"


def test_no_answer_yet() -> None:
    assert best([]) is None
