"""Secrets stay out of sight."""

from __future__ import annotations

import dataclasses

import pytest

from opentsm.types import Code, Tsid
from opentsm.wire import messages as m

REQUEST = m.ConfigurationRequest(
    tsid=Tsid(1), sequence=1, username="al", password=b"hunter2", resume_proof=b"P" * 32
)
RESPONSE = m.ConfigurationResponse(tsid=Tsid(1), sequence=1, code=Code.SUCCESS, resume_secret=b"S" * 32)


@pytest.mark.parametrize("message", [REQUEST, RESPONSE])
def test_repr_never_shows_a_secret(message: m.Message) -> None:
    shown = f"{message!r} {message}"
    assert all(word not in shown for word in ("hunter2", "PPP", "SSS"))


def test_every_secret_field_is_one_of_those_that_are_never_logged() -> None:
    hidden = {
        field.name
        for cls in (m.ConfigurationRequest, m.ConfigurationResponse, m.ServiceResponse)
        for field in dataclasses.fields(cls)
        if not field.repr
    }
    assert hidden == m.SECRET_FIELDS


def test_messages_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        REQUEST.sequence = 2  # type: ignore[misc]
