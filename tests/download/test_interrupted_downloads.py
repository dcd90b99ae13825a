"""Runs that are killed or interrupted, and two runs in one folder."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess

import psutil
import pytest
from download_script import HELD, LIMIT, WEIGHTS, needs_tools, shells_of, transfers, until
from download_server import Fault

pytestmark = needs_tools


def test_a_run_killed_in_the_middle_is_continued_by_the_next(script) -> None:
    script.server.faults[WEIGHTS] = Fault(times=1, hold=HELD)
    process = script.start("--models", "7b")
    script.until_held()
    process.kill()
    process.wait()
    assert (script.folder / (WEIGHTS + ".part")).stat().st_size > 0
    result = script.run("--models", "7b")
    assert result.returncode == 0, result.stderr
    script.complete()
    assert script.server.sent() < 1.5 * len(script.server.files[WEIGHTS])
    assert script.server.gets()[-1].range
    process.communicate()


def test_a_killed_run_leaves_no_process_behind(once) -> None:
    once.server.faults[WEIGHTS] = Fault(hold=HELD)
    process = once.start("--models", "7b")
    once.until_held()
    assert transfers(once.server)
    process.kill()
    process.wait()
    until(lambda: not transfers(once.server), 30)  # half of what curl would wait for the next byte
    process.communicate()


def test_what_outlived_a_killed_run_is_ended_before_the_next_one_writes(script) -> None:
    script.server.faults[WEIGHTS] = Fault(times=1, hold=HELD)
    process = script.start("--models", "7b")
    script.until_held()
    # All are stopped before the first is killed: one that saw another gone would end the transfer itself.
    stopped: dict[int, psutil.Process] = {}
    while new := [one for one in shells_of(process.pid) if one.pid not in stopped]:
        for one in new:
            stopped[one.pid] = one
            with contextlib.suppress(psutil.Error):
                one.suspend()
    for one in stopped.values():
        with contextlib.suppress(psutil.Error):
            one.kill()
    process.communicate()
    assert transfers(script.server), "curl or wget is all that is left"
    assert script.run("--models", "7b").returncode == 0
    assert not transfers(script.server)
    script.complete()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_ends_its_children_and_says_how_to_go_on(script, sent, code) -> None:
    script.server.faults[WEIGHTS] = Fault(hold=HELD)
    process = script.start("--models", "7b")
    script.until_held()
    assert transfers(script.server)
    process.send_signal(sent)
    _, err = process.communicate(timeout=30)  # half of what curl would wait for the next byte
    assert process.returncode == code
    until(lambda: not transfers(script.server), 10)  # they were told to end, and may take a moment
    assert "--models 7b --dir " in err
    assert (script.folder / (WEIGHTS + ".part")).exists()
    assert not (script.folder / ".download.lock").exists()


def test_two_runs_in_one_folder_do_not_mix(once) -> None:
    once.server.faults[WEIGHTS] = Fault(hold=HELD)
    first = once.start("--models", "7b")
    once.until_held()
    second = once.run("--models", "7b")
    assert second.returncode == 2
    assert f"Another run, with process {first.pid} on" in second.stderr
    once.server.faults[WEIGHTS].go.set()
    first.communicate(timeout=LIMIT)
    assert first.returncode == 0
    once.complete()


@pytest.mark.parametrize("owner", ["", "{pid} {host}", "999999999 {host}"], ids=["none", "reused", "gone"])
def test_a_lock_whose_owner_is_gone_holds_nobody_up(once, owner) -> None:
    other = subprocess.Popen(["sleep", "600"])  # got the number of a run that was killed
    try:
        lock = once.folder / ".download.lock"
        lock.mkdir(parents=True)
        text = owner.format(pid=other.pid, host=socket.gethostname())
        (lock / "owner").write_text(text and text + "\n")
        (lock / "pid.fetch.0").write_text(f"{other.pid}\n")
        assert once.run("--models", "7b").returncode == 0
        assert other.poll() is None, "a stranger is left alone"
    finally:
        other.kill()
        other.wait()
    once.complete()


def test_a_lock_of_another_machine_is_respected(once) -> None:
    lock = once.folder / ".download.lock"
    lock.mkdir(parents=True)
    (lock / "owner").write_text("1 elsewhere\n")
    result = once.run("--models", "7b")
    assert (result.returncode, once.server.requests) == (2, [])
    assert f"If there is none, remove {lock}." in result.stderr
