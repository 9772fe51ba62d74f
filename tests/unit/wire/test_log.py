"""Messages in a data log."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Interface

import pytest

from opentsm.types import Code, Flow, Path, PathMode, Protocol, Service, ServiceAction, Tsid
from opentsm.wire import messages as m
from opentsm.wire.log import REDACTED, log_record

TSID = Tsid(0xABC)


def test_a_service_request_reads_like_a_sentence() -> None:
    far = (IPv4Address("10.1.2.3"), 7078)
    message = m.ServiceRequest(
        tsid=TSID,
        sequence=7,
        service=Service.DDT,
        action=ServiceAction.PAIR_MISSING,
        mode=PathMode.AUTO,
        flows=(Flow(Protocol.UDP, 4000, far=far), Flow(Protocol.TCP, 1, True)),
    )
    assert log_record(message) == {
        "message": "service-request",
        "tsid": "0000000000000abc",
        "sequence": 7,
        "service": "ddt",
        "action": "pair-missing",
        "mode": "auto",
        "flows": ["udp/ipv4 port 4000 -> 10.1.2.3 port 7078", "tcp/ipv6 port 1"],
    }


def test_secrets_show_only_that_they_were_there() -> None:
    request = m.ConfigurationRequest(tsid=TSID, sequence=1, password=b"hunter2", resume_proof=bytes(32))
    record = log_record(request)
    assert record["password"] == record["resume_proof"] == REDACTED
    response = m.ConfigurationResponse(tsid=TSID, sequence=1, code=0, resume_secret=b"s" * 32)
    assert log_record(response)["resume_secret"] == REDACTED


@pytest.mark.parametrize(
    "message",
    [
        m.ConfigurationResponse(
            tsid=TSID,
            sequence=1,
            code=Code.NO_ADDRESS,
            inner_ipv4=IPv4Interface("10.0.0.2/16"),
            sip_server=(IPv4Address("10.0.0.1"), 5060),
            offered_services=(Service.SIP, 777),
        ),
        m.ConfigurationRequest(tsid=TSID, sequence=1, client_id=b"\xff\0", families=m.AddressFamilies.BOTH),
        m.QualityReport(tsid=TSID, sequence=1, reports=(m.PathQuality(Path.DATAGRAM, 1, 2, 3, 4, 5),)),
        m.UnknownMessage(tsid=TSID, sequence=1, type=99),
    ],
)
def test_every_record_is_ready_for_json(message: m.Message) -> None:
    assert json.loads(json.dumps(log_record(message))) == log_record(message)


def test_absent_fields_take_no_room() -> None:
    assert log_record(m.KeepaliveRequest(tsid=TSID, sequence=1)) == {
        "message": "keepalive-request",
        "tsid": "0000000000000abc",
        "sequence": 1,
    }
