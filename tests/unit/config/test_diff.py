"""What a reload would change, said so that an operator can judge it."""

from __future__ import annotations

import pytest

from opentsm.config import Changes, Effect, diff, loads


def changed(text: str, old: str, new: str) -> Changes:
    assert old in text
    return diff(loads(text), loads(text.replace(old, new)))


def test_no_difference_says_so(example: str) -> None:
    changes = diff(loads(example, source="a"), loads(example, source="b"))
    assert not changes
    assert str(changes) == "nothing changes"


@pytest.mark.parametrize(
    ("old", "new", "said", "effect"),
    [
        (
            '["SIP", "DDT", "redundancy", "FEC", "header-compression", "server-keepalive", "nagle"]',
            '["SIP"]',
            "tscf-interface access: assigned-services: SIP, redundancy, DDT, server-keepalive, nagle, "
            "header-compression, FEC -> SIP (for newly established tunnels)",
            Effect.NEW_TUNNELS,
        ),
        (
            'log-level = "info"',
            'log-level = "debug"',
            "server: log-level: info -> debug (at once)",
            Effect.LIVE,
        ),
        ("workers = 2", "workers = 4", "server: workers: 2 -> 4 (after a restart)", Effect.RESTART),
        ('"5 min" ', '"90 s" ', "timers: keepalive-timer: 5 min -> 90 s (for newly", Effect.NEW_TUNNELS),
        ('user = "opentsm"', "", "server: user: opentsm -> nothing (after a restart)", Effect.RESTART),
        ('control-log = "on"', "", "tscf-interface access: control-log: on -> off (at once)", Effect.LIVE),
        (
            '"10.64.2.10-10.64.2.200", ',
            "",
            "tscf-address-pool office: ranges: 10.64.1.1-10.64.1.254, 10.64.2.10-10.64.2.200, "
            "fd00:64::1:0:0:1-fd00:64::1:0:ffff:ffff -> 10.64.1.1-10.64.1.254, "
            "fd00:64::1:0:0:1-fd00:64::1:0:ffff:ffff (for newly established tunnels)",
            Effect.NEW_TUNNELS,
        ),
        (
            'protocol-policies = ["directory", "no-smtp"]',
            'protocol-policies = "directory"',
            "tscf-address-pool office: protocol-policies: directory, no-smtp -> directory (at once)",
            Effect.LIVE,
        ),
        (
            'sip-server = "10.64.0.2:5060"',
            "",
            "tscf-address-pool office: sip-server: 10.64.0.2, 5060 -> nothing",
            None,
        ),
    ],
)
def test_one_change_is_one_line(example: str, old: str, new: str, said: str, effect: Effect | None) -> None:
    changes = changed(example, old, new)
    assert len(changes.changes) == 1
    assert str(changes).startswith(said)
    assert effect in (changes.changes[0].effect, None)


def test_a_changed_object_is_not_a_change_of_all_that_refer_to_it(example: str) -> None:
    changes = changed(example, "10.64.0.1/16", "10.64.0.1/12")
    assert changes.touches("realm")
    assert not changes.touches("tscf-interface")


def test_objects_that_come_and_go_are_named(example: str) -> None:
    more = example + '\n[tscf-address-pool.annex]\nranges = "10.64.9.0/24"\n'
    changes = diff(loads(example), loads(more))
    assert str(changes) == "tscf-address-pool annex added (for newly established tunnels)"
    assert (
        str(diff(loads(more), loads(example)))
        == "tscf-address-pool annex removed (for newly established tunnels)"
    )


def test_live_and_restart_divide_the_changes(example: str) -> None:
    new = example.replace("workers = 2", "workers = 3").replace("port = 443", "port = 8443")
    new = new.replace("max-tunnels = 400", "max-tunnels = 500")
    changes = diff(loads(example), loads(new))
    assert [str(change) for change in changes.restart] == [
        "server: workers: 2 -> 3 (after a restart)",
        "tscf-port v4: port: 443 -> 8443 (after a restart)",
        "tscf-port v6: port: 443 -> 8443 (after a restart)",
    ]
    assert [change.key for change in changes.live] == ["max-tunnels"]
    assert set(changes) == {*changes.live, *changes.restart}
    assert changes.touches("server")
    assert not changes.touches("realm")
