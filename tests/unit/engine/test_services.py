from __future__ import annotations

import pytest

from opentsm.engine.services import DEFAULT_SERVICES, format_services, judge, negotiate, parse_services
from opentsm.types import Code, Service


def test_names_are_read_in_any_case_from_text_or_list() -> None:
    expected = frozenset({Service.SIP, Service.DDT, Service.SERVER_KEEPALIVE})
    assert parse_services("sip, DDT ,Server-Keepalive") == expected
    assert parse_services(["SIP", "ddt", "server-keepalive"]) == expected
    assert parse_services("") == frozenset()


def test_what_is_written_is_read_back() -> None:
    every = frozenset(Service)
    assert parse_services(format_services(every)) == every


def test_an_unknown_name_gets_the_nearest_or_all() -> None:
    with pytest.raises(ValueError, match=r"'server-keepaliv'; did you mean server-keepalive\?"):
        parse_services("SIP, server-keepaliv")
    with pytest.raises(ValueError, match="known: SIP, redundancy, DDT"):
        parse_services("xyzzy")


def test_ddt_is_off_by_default() -> None:
    assert Service.DDT not in DEFAULT_SERVICES


def test_a_session_has_what_is_wanted_and_assigned() -> None:
    assigned = parse_services("SIP, DDT, nagle")
    assert negotiate([3, 1, 4, 999, 3], assigned) == (Service.SIP, Service.DDT)
    assert negotiate([], assigned) == ()
    assert negotiate([3], frozenset()) == ()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (3, Code.SUCCESS),
        (2, Code.SERVICE_UNAVAILABLE),
        (0, Code.UNKNOWN_SERVICE),
        (999, Code.UNKNOWN_SERVICE),
    ],
)
def test_a_service_request_is_judged(number: int, code: Code) -> None:
    assert judge(number, {Service.SIP, Service.DDT}) is code
