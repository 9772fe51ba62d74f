"""Resume proofs."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from opentsm.protocol.resume import (
    NO_BINDING,
    join_holds,
    join_proof,
    proof_holds,
    resume_proof,
    resume_secret,
)
from opentsm.types import Tsid

SECRET, BINDING, TSID = b"k" * 32, b"b" * 32, Tsid(0x0102030405060708)
PROOF = resume_proof(SECRET, TSID, BINDING)


def test_a_proof_is_what_the_document_says() -> None:
    text = b"resume" + bytes([1, 2, 3, 4, 5, 6, 7, 8]) + BINDING
    assert hmac.new(SECRET, text, hashlib.sha256).digest() == PROOF


@pytest.mark.parametrize(
    ("secret", "tsid", "binding"),
    [(b"x" * 32, TSID, BINDING), (SECRET, Tsid(1), BINDING), (SECRET, TSID, NO_BINDING)],
)
def test_a_proof_is_worth_nothing_anywhere_else(secret: bytes, tsid: Tsid, binding: bytes) -> None:
    assert proof_holds(PROOF, SECRET, TSID, BINDING)
    assert not proof_holds(PROOF, secret, tsid, binding)


@pytest.mark.parametrize("proof", [b"", PROOF[:-1], PROOF + b"\0", bytes(32)])
def test_a_damaged_proof_does_not_hold(proof: bytes) -> None:
    assert not proof_holds(proof, SECRET, TSID, BINDING)


def test_each_session_and_generation_has_a_secret_of_its_own() -> None:
    master = b"m" * 32
    made = {resume_secret(master, Tsid(tsid), number) for tsid in range(1, 20) for number in range(20)}
    made |= {resume_secret(b"n" * 32, Tsid(1), 0)}
    assert len(made) == 19 * 20 + 1
    assert all(len(secret) == 32 for secret in made)
    assert resume_secret(master, TSID, 1) != resume_proof(master, TSID, (1).to_bytes(8, "big"))


def test_a_join_proof_is_what_the_document_says_and_no_resume_proof() -> None:
    text = b"join" + bytes([1, 2, 3, 4, 5, 6, 7, 8]) + BINDING
    proof = join_proof(SECRET, TSID, BINDING)
    assert hmac.new(SECRET, text, hashlib.sha256).digest() == proof
    assert join_holds(proof, SECRET, TSID, BINDING)
    assert not join_holds(PROOF, SECRET, TSID, BINDING)
    assert not proof_holds(proof, SECRET, TSID, BINDING)
    assert not join_holds(proof, SECRET, TSID, NO_BINDING)
