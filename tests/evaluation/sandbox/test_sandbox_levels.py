"""Which sandbox is opened, as whom its jobs run, and the command line of those that cannot run here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from llama.errors import EvaluationError
from llama.evaluation.sandbox import LEVELS, Command, Job, Outcome, Sandbox, open_sandbox, opening
from llama.evaluation.sandbox.levels import LimitsOnly, SandboxExec, seatbelt_profile
from llama.evaluation.sandbox.users import WORKERS, may_become_workers, other_tasks, worker


class Forbidden:
    """A level that this machine does not allow."""

    level = "forbidden"

    def run(self, job: Job) -> Outcome:
        raise EvaluationError("no permission to create a new namespace")


def test_an_unknown_level_is_an_error() -> None:
    with pytest.raises(
        EvaluationError, match="'docker': there are auto, bubblewrap, unshare, sandbox-exec, limits"
    ):
        open_sandbox("docker")


def test_levels_bear_their_names(every_sandbox: Sandbox) -> None:
    assert every_sandbox.level in LEVELS
    assert open_sandbox(every_sandbox.level).level == every_sandbox.level


def test_auto_takes_unshare_where_bubblewrap_is_missing(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_sandbox().level in ("bubblewrap", "unshare")
    monkeypatch.setenv("PATH", "/nowhere")
    assert open_sandbox().level == "unshare"
    with pytest.raises(EvaluationError, match="install the package bubblewrap"):
        open_sandbox("bubblewrap")


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_auto_never_takes_limits(monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    for level in ("bubblewrap", "unshare", "sandbox-exec"):
        monkeypatch.setitem(opening._MAKERS, level, Forbidden)
    with pytest.raises(EvaluationError) as caught:
        open_sandbox()
    for part in ("no permission to create a new namespace", "seccomp=unconfined", "--sandbox limits"):
        assert part in str(caught.value)


def test_a_sandbox_that_runs_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: LimitsOnly, job: Job) -> Outcome:
        return Outcome(opening.Ended.EXITED, 0, 127, b"", b"python: not found\n", b"")

    monkeypatch.setattr(LimitsOnly, "run", fail)
    with pytest.raises(
        EvaluationError, match=r"a trivial program ended with 127 \(exited\): python: not found"
    ):
        open_sandbox("limits")


@pytest.mark.parametrize("level", ["bubblewrap", "unshare"])
def test_namespaces_are_linux_only(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(EvaluationError, match="needs Linux's namespaces; this is darwin"):
        open_sandbox(level)


def test_two_jobs_of_root_never_have_one_user() -> None:
    with worker() as first, worker() as second:
        if os.geteuid() == 0:
            assert {first, second} < set(WORKERS)
            assert first != second
        else:
            assert (first, second) == (None, None)


@pytest.mark.parametrize(
    ("uid_map", "may"),
    [
        ("         0          0 4294967295\n", True),
        ("0 100000 65536\n", True),
        ("0 1000 1\n", False),
        ("0 1000 1\n1 100000 65536\n", True),
        ("0 0 1000\n", False),
    ],
)
def test_root_of_a_small_user_namespace_has_no_users_for_jobs(uid_map: str, may: bool) -> None:
    assert may_become_workers(uid_map) is may


def test_our_own_tasks_are_counted() -> None:
    assert other_tasks() >= len(os.listdir("/proc/self/task"))


def test_the_seatbelt_profile_denies_all_but_reading_the_system_and_one_folder() -> None:
    lines = seatbelt_profile('/private/tmp/a "b"\\', ("/usr", "/opt/python")).splitlines()
    assert lines[:2] == ["(version 1)", "(deny default)"]
    writes = [line for line in lines if "file-write" in line]
    assert writes == ['(allow file-write* (subpath "/private/tmp/a \\"b\\"\\\\") (literal "/dev/null"))']
    assert not any("network" in line or "mach-lookup" in line for line in lines)
    assert all(line.startswith("(allow ") for line in lines[2:])
    assert '(subpath "/opt/python")' in next(line for line in lines if "file-read*" in line)


def test_sandbox_exec_is_given_the_profile_and_the_watcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script in place of macOS's program notes the profile and runs the rest."""
    script = tmp_path / "sandbox-exec"
    script.write_text(
        f'#!/bin/sh\n[ "$1" = -p ] || exit 1\nprintf %s "$2" > {tmp_path}/profile\nshift 2\nexec "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    outcome = SandboxExec().run(Job({"file": b"content"}, [Command(("cat", "file"))]))
    assert outcome.stdout == b"content"
    assert (tmp_path / "profile").read_text().startswith("(version 1)\n(deny default)\n")


def test_sandbox_exec_is_missing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EvaluationError, match="sandbox-exec is a program of macOS"):
        open_sandbox("sandbox-exec")
