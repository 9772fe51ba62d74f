from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from opentsm.errors import PlatformError
from opentsm.lab import privileges


def test_the_outer_user_id_is_ours_where_nothing_is_mapped() -> None:
    if privileges.in_user_namespace():
        pytest.skip("this test runs inside a user namespace")
    assert privileges.outer_uid() == os.getuid()


def test_without_ip_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "apt-get install iproute2" in (privileges.skip_reason() or "")


def test_missing_capabilities_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "_missing_capabilities", lambda: ["CAP_SYS_ADMIN"])
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    reason = privileges.skip_reason() or ""
    assert "CAP_SYS_ADMIN" in reason
    assert "unshare" in reason


def test_a_kernel_that_forbids_user_namespaces_is_told_with_the_command_that_allows_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    switch = tmp_path / "max_user_namespaces"
    switch.write_text("0\n")
    monkeypatch.setattr(privileges, "_KERNEL_SWITCHES", ((str(switch), "0", "sysctl -w a.b=1"),))
    monkeypatch.setattr(privileges, "skip_reason", lambda: "this process lacks CAP_SYS_ADMIN")
    monkeypatch.delenv("OPENTSM_LAB_REEXECUTED", raising=False)
    with pytest.raises(PlatformError, match=r"sysctl -w a\.b=1"):
        privileges.ensure_privileges()


def test_a_refused_unshare_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = subprocess.CompletedProcess(["unshare"], 1, "", "unshare: Operation not permitted\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: refusal)
    monkeypatch.setattr(privileges, "_KERNEL_SWITCHES", ())
    monkeypatch.setattr(privileges, "skip_reason", lambda: "no rights")
    monkeypatch.delenv("OPENTSM_LAB_REEXECUTED", raising=False)
    with pytest.raises(PlatformError, match="Operation not permitted"):
        privileges.ensure_privileges()


def test_the_program_is_run_again_inside_a_user_namespace_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def execute(file: str, argv: list[str], environment: dict[str, str]) -> None:
        started.append(argv)
        monkeypatch.setenv("OPENTSM_LAB_REEXECUTED", environment["OPENTSM_LAB_REEXECUTED"])
        raise SystemExit

    monkeypatch.setattr(privileges, "skip_reason", lambda: "no rights")
    monkeypatch.setattr(privileges, "_userns_obstacle", lambda: None)
    monkeypatch.setattr(os, "execvpe", execute)
    monkeypatch.delenv("OPENTSM_LAB_REEXECUTED", raising=False)
    with pytest.raises(SystemExit):
        privileges.ensure_privileges(["prog", "up"])
    assert started == [["unshare", "--user", "--map-root-user", "--net", "--mount", "prog", "up"]]
    with pytest.raises(PlatformError, match="even inside"):
        privileges.ensure_privileges(["prog", "up"])
