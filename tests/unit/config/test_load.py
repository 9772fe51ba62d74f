"""Files: read, refused, and looked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from opentsm.config import ConfigErrors, check_files, load, loads
from opentsm.config.tree import MAX_FILE_BYTES
from opentsm.errors import ConfigError


def write(directory: Path, name: str, content: str | bytes) -> Path:
    file = directory / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def test_the_examples_load_and_say_the_same(root: Path) -> None:
    toml, xml = load(root / "examples/server.toml"), load(root / "examples/server.xml")
    assert toml.source != xml.source
    assert replace(toml, source="") == replace(xml, source="")


def test_names_of_files_are_relative_to_the_configuration(
    tmp_path: Path, minimal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "server.toml", minimal)
    monkeypatch.chdir(tmp_path)
    for name in ("server.toml", tmp_path / "server.toml"):
        assert load(name).tls_profiles["main"].key == tmp_path / "server.key"
    elsewhere = loads(minimal, source="memory", base=Path("/srv"))
    assert elsewhere.tls_profiles["main"].key == Path("/srv/server.key")
    absolute = loads(minimal.replace('"server.key"', '"/etc/ssl/k"'))
    assert absolute.tls_profiles["main"].key == Path("/etc/ssl/k")


def test_the_ending_decides_the_format(tmp_path: Path, minimal: str) -> None:
    with pytest.raises(ConfigErrors, match="not well-formed XML"):
        load(write(tmp_path, "server.XML", minimal))
    with pytest.raises(ConfigErrors, match="not valid TOML"):
        load(write(tmp_path, "server.conf", "<opentsm/>"))
    with pytest.raises(ValueError, match="format 'yaml' is not one of toml, xml"):
        loads("", format="yaml")


def test_a_byte_order_mark_is_no_problem(tmp_path: Path, minimal: str) -> None:
    assert load(write(tmp_path, "server.toml", b"\xef\xbb\xbf" + minimal.encode())).interfaces


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a = 1\nb = '\xff'\n", ":2: is not UTF-8 text (save it as UTF-8)"),
        (b"#" * (MAX_FILE_BYTES + 1), "is larger than 4194304 bytes (is it the right file?)"),
    ],
)
def test_what_is_no_configuration_file_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load(write(tmp_path, "server.toml", content))
    assert said in str(caught.value)


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.toml: cannot be read: No such file or directory"):
        load(tmp_path / "server.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(ConfigErrors, match="is larger than"):
        load("/dev/zero")


def test_files_that_the_settings_name_must_be_there(tmp_path: Path, example: str) -> None:
    settings = load(
        write(
            tmp_path, "server.toml", example.replace("/var/log/opentsm/", "log/").replace("/var/lib/", "lib/")
        )
    )
    with pytest.raises(ConfigErrors) as caught:
        check_files(settings)
    assert [problem.message.partition(": ")[0].split(" /")[0] for problem in caught.value.problems] == [
        "tls-profile main certificate",
        "tls-profile main key",
        "tls-profile main client-ca",
        "authentication password-file",
        "sbc calls users-file",
        "trunk provider password-file",
        "server data-log",
        "server store",
        "sbc calls cdr-file",
        "sbc calls database",
    ]
    assert f"certificate {tmp_path}/certs/server.pem: No such file or directory" in str(caught.value)
    for name in ("certs", "log", "lib/opentsm"):
        (tmp_path / name).mkdir(parents=True)
    for name in (
        "certs/server.pem",
        "certs/server.key",
        "certs/clients-ca.pem",
        "passwords",
        "sip-users",
        "provider-password",
    ):
        write(tmp_path, name, "x")
    check_files(settings)


def test_a_directory_in_place_of_a_file_is_a_problem(tmp_path: Path, minimal: str) -> None:
    settings = load(write(tmp_path, "server.toml", minimal + "[timers]\n"))
    write(tmp_path, "server.pem", "x")
    (tmp_path / "server.key").mkdir()
    with pytest.raises(ConfigErrors, match=r"server\.key: not a regular file"):
        check_files(settings)


def test_the_group_of_problems_speaks_like_its_first(minimal: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loads(minimal.replace("anonymous", "anonymus").replace("core =", "cores ="), source="f")
    error = caught.value
    assert isinstance(error, ConfigErrors)
    assert (error.source, error.line, error.hint) == ("f", 2, "did you mean 'anonymous'?")
    assert len(error.problems) == 3
