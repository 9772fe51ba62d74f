"""`opentsm up` and `opentsm run`, as one types them, up to where they need a network."""

from __future__ import annotations

from pathlib import Path as FilePath

import pytest

from opentsm.cli import reaching
from opentsm.cli.main import run
from opentsm.cli.run import split
from opentsm.cli.up import live_line
from opentsm.client.statistics import PathStatistics, Statistics
from opentsm.errors import ConfigError
from opentsm.types import Path, PathMode

URL = "tls://tsm.example.org:443"


def test_words_in_front_that_look_like_servers_are_servers() -> None:
    words = [URL, "tcp://10.0.0.1", "baresip", "-f", "tls://not-a-server"]
    assert split(words, None) == ([URL, "tcp://10.0.0.1"], ["baresip", "-f", "tls://not-a-server"])


def test_without_any_the_environment_names_them() -> None:
    assert split(["baresip"], f"{URL} tls://other") == ([URL, "tls://other"], ["baresip"])


def test_what_is_missing_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(reaching.SERVER_VARIABLE, raising=False)
    assert run(["run", "--", "baresip"]) == 1
    assert "'baresip' is taken for the program" in capsys.readouterr().err
    assert run(["run", URL]) == 1
    assert "opentsm run tls://HOST:443 -- PROGRAM" in capsys.readouterr().err
    assert run(["run", "udp://host", "--", "baresip"]) == 1
    assert "a tunnel begins on a stream" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--route", "10.0.0.1/8"], "--route 10.0.0.1/8"),
        (["--name", "a/b"], "cannot be a network device's name"),
        (["--password-file", "/nonexistent"], "cannot read the password file /nonexistent"),
    ],
)
def test_a_wrong_option_of_up_is_one_sentence(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["up", URL, *arguments]) == 1
    assert says in capsys.readouterr().err


def test_who_is_not_root_is_sent_to_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("opentsm.client.run.os.geteuid", lambda: 1000)
    assert run(["up", URL]) == 1
    assert "`opentsm run URL -- PROGRAM`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ddt", "auto", "media"),
    [(True, False, PathMode.DATAGRAM), (True, True, PathMode.AUTO), (False, True, PathMode.STREAM)],
)
def test_where_media_goes(ddt: bool, auto: bool, media: PathMode, tmp_path: FilePath) -> None:
    secret = tmp_path / "password"
    secret.write_text("open sesame\n")
    how = reaching.reach(
        [URL],
        user="alice",
        password_file=secret,
        password_prompt=False,
        ca=None,
        pin="ab" * 32,
        insecure=False,
        certificate=None,
        proxy=None,
        family="both",
        ddt=ddt,
        auto=auto,
        pcap=None,
    )
    assert how.media.mode is media
    assert how.options["password"] == "open sesame"
    assert "open sesame" not in repr(how)
    assert how.options["verify"] is False, "a pin alone decides"


def test_ranges_of_media_ports() -> None:
    assert reaching.parse_ports(["10000-20000", "7078"]) == ((10000, 20000), (7078, 7078))
    for wrong in ("", "0-9", "9-8", "1-65536", "a-b", "1-2-3"):
        with pytest.raises(ConfigError, match="not a range of ports"):
            reaching.parse_ports([wrong])
    with pytest.raises(ConfigError, match="more than 16"):
        reaching.parse_ports(["1"] * 17)


def test_an_unreadable_password_is_a_configuration_error(tmp_path: FilePath) -> None:
    with pytest.raises(ConfigError, match="cannot read the password file"):
        reaching._password(tmp_path, False)


def test_the_live_line_shows_the_path_that_media_takes() -> None:
    stream = PathStatistics(Path.STREAM, True, rx_packets=10, tx_packets=1200, delay_ms=80.4)
    datagram = PathStatistics(
        Path.DATAGRAM, True, rx_packets=5, tx_packets=6, loss_percent=1.25, delay_ms=21.0
    )
    numbers = Statistics(stream, datagram)
    assert live_line("tsm0", "10.0.0.2", numbers, []) == (
        "tsm0  10.0.0.2  no media  sent 1,206  received 15  loss 0.0 %  delay 80 ms"
    )
    shown = live_line("tsm0", "10.0.0.2", numbers, [Path.DATAGRAM, Path.STREAM])
    assert "media 1 datagram, 1 stream" in shown
    assert shown.endswith("loss 1.2 %  delay 21 ms")
