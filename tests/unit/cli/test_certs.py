"""`opentsm certs`, from an empty folder to a TLS handshake."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path

import pytest

from opentsm.cli.main import run

END = "-----END CERTIFICATE-----\n"


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> ssl.SSLObject:
    """A TLS handshake in memory; the server's side. Raises ssl.SSLError where one does not take the other."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(down, up, server_hostname=host)
    far = server.wrap_bio(up, down, server_side=True)
    waiting = [near, far]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(side)
    assert not waiting
    return far


def test_what_the_three_commands_make_is_enough_for_mutual_tls(tmp_path: Path) -> None:
    folder = str(tmp_path / "certs")
    assert run(["certs", "init", folder]) == 0
    assert run(["certs", "server", folder, "--name", "host.example", "--address", "192.0.2.1"]) == 0
    assert run(["certs", "client", folder, "--name", "alice"]) == 0
    authority = f"{folder}/ca.pem"
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(f"{folder}/server.pem", f"{folder}/server.key")
    server.load_verify_locations(authority)
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=authority)
    client.load_cert_chain(f"{folder}/alice.pem", f"{folder}/alice.key")
    for host in ("host.example", "192.0.2.1"):
        shown = handshake(server, client, host).getpeercert()
        assert shown is not None
        assert shown["subject"] == ((("commonName", "alice"),),)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, client, "other.example")


def test_it_says_what_to_do_next_and_the_pin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path)
    run(["certs", "init", folder])
    assert f"opentsm certs server {folder}" in capsys.readouterr().out
    run(["certs", "server", folder, "--name", "host.example"])
    said = capsys.readouterr().out
    der = ssl.PEM_cert_to_DER_cert((tmp_path / "server.pem").read_text().split(END)[0] + END)
    assert hashlib.sha256(der).hexdigest() in said
    assert "server.key" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["certs", "init"],
        ["certs", "server", "--name", "h.example"],
        ["certs", "client", "--name", "alice"],
    ],
)
def test_a_second_run_replaces_nothing_without_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    folder = str(tmp_path)
    run(["certs", "init", folder])
    run([*arguments[:2], folder, *arguments[2:]])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    assert run([*arguments[:2], folder, *arguments[2:]]) == 1
    assert "--force" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert run([*arguments[:2], folder, *arguments[2:], "--force"]) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} != before


def test_without_an_authority_it_says_how_to_make_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["certs", "client", str(tmp_path), "--name", "alice"]) == 1
    assert f"opentsm certs init {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../alice", "ca", ".alice"])
def test_a_clients_name_stays_in_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "certs"
    run(["certs", "init", str(folder)])
    before = sorted(tmp_path.rglob("*"))
    assert run(["certs", "client", str(folder), "--name", name]) == 1
    assert sorted(tmp_path.rglob("*")) == before
