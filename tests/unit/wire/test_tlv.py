"""The TLV table is the one of docs/protocol.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from opentsm.errors import LocalProtocolError
from opentsm.wire import tlv as t

TEXT = (Path(__file__).parents[3] / "docs/protocol.md").read_text()


def documented() -> dict[int, tuple[str, bool]]:
    section = TEXT.split("## TLVs")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| ([a-z0-9-]+) \| (.*) \|$", section, re.MULTILINE)
    return {int(number): (name, "may repeat" in value) for number, name, value in rows}


def test_code_and_document_agree_on_every_tlv() -> None:
    assert {n: (row.name, row.repeats) for n, row in t.ALL_TLVS.items()} == documented()


def test_there_are_as_many_rows_as_numbers() -> None:
    assert sum(isinstance(value, t.Tlv) for value in vars(t).values()) == len(t.ALL_TLVS) == len(documented())


@pytest.mark.parametrize("row", [t.RESUME_SECRET, t.RESUME_PROOF, t.JOIN_SECRET, t.JOIN_PROOF])
def test_a_secret_of_the_wrong_length_is_never_sent(row: t.Tlv) -> None:
    with pytest.raises(LocalProtocolError):
        row.pack(bytes(t.SECRET_BYTES - 1))


def test_a_number_too_large_for_its_tlv_is_our_own_error() -> None:
    with pytest.raises(LocalProtocolError, match="does not fit"):
        t.INNER_MTU.pack(65536)
