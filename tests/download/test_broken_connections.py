"""Connections that break, stall or trickle: a download goes on where it stopped."""

from __future__ import annotations

from download_script import HELD, WEIGHTS, fake_df, needs_tools
from download_server import Fault

pytestmark = needs_tools


def test_a_cut_connection_is_continued_where_it_broke(script) -> None:
    script.server.faults[WEIGHTS] = Fault(times=2, cut=70_000)
    assert script.run("--models", "7b").returncode == 0
    script.complete()
    assert [one.range for one in script.server.gets()] == [None, "bytes=70000-", "bytes=140000-"]
    assert script.server.sent() == len(script.server.files[WEIGHTS])


def test_only_tries_in_a_row_that_bring_nothing_are_counted(once) -> None:
    once.server.faults[WEIGHTS] = Fault(times=9, cut=20_000)
    assert once.run("--models", "7b").returncode == 0
    once.complete()
    assert len(once.server.gets()) == 10
    assert once.server.sent() == len(once.server.files[WEIGHTS])


def test_a_connection_that_falls_silent_counts_as_broken(script) -> None:
    script.server.faults[WEIGHTS] = Fault(times=1, hold=HELD)
    result = script.run("--models", "7b", env={"CODELLAMA_PATIENCE": "1"})
    assert result.returncode == 0
    script.complete()
    assert [one.range for one in script.server.gets()] == [None, f"bytes={HELD}-"]


def test_a_trickle_counts_as_broken_and_a_try_that_brings_one_as_none(script) -> None:
    script.server.faults[WEIGHTS] = Fault(times=1, drip=0.05)
    slow = {"CODELLAMA_PATIENCE": "1", **fake_df(script.folder.parent, 10**10)}
    assert script.run("--models", "7b", env=slow).returncode == 0
    script.complete()
    assert len(script.server.gets()) == 2
    (script.folder / WEIGHTS).unlink()
    script.server.faults[WEIGHTS] = Fault(times=20, cut=1)
    result = script.run("--models", "7b")
    assert result.returncode == 1
    assert "broke 5 times in a row, and brought less than 1000 bytes a second" in result.stderr
    assert len(script.server.gets()) == 2 + 5


def test_a_part_of_an_earlier_run_is_continued(script) -> None:
    script.part(150_000)
    assert script.run("--models", "7b").returncode == 0
    script.complete()
    assert script.server.sent() == len(script.server.files[WEIGHTS]) - 150_000


def test_a_server_that_ignores_ranges_is_asked_from_the_start(script) -> None:
    script.part(150_000)
    script.server.faults[WEIGHTS] = Fault(ranges=False)
    assert script.run("--models", "7b").returncode == 0
    script.complete()


def test_a_server_that_ignores_ranges_and_always_cuts_is_given_up(script) -> None:
    script.server.faults[WEIGHTS] = Fault(ranges=False, cut=70_000)
    result = script.run("--models", "7b")
    assert result.returncode == 1
    assert "the connection broke 5 times in a row" in result.stderr
    assert len(script.server.gets()) <= 12


def test_a_complete_part_is_not_fetched_but_verified(once) -> None:
    once.part(10_000_000)
    assert once.run("--models", "7b").returncode == 0
    once.complete()
    assert once.server.gets() == []


def test_416_means_complete_where_no_size_is_told(script) -> None:
    script.part(10_000_000)
    script.server.faults[WEIGHTS] = Fault(tells_size=False)
    plenty = fake_df(script.folder.parent, 10**10)
    result = script.run("--models", "7b", env=plenty)
    assert result.returncode == 0, result.stderr
    script.complete()
    assert [one.range for one in script.server.gets()] == [f"bytes={len(script.server.files[WEIGHTS])}-"]
    assert "does not tell the size; reckoning with 12.6 GiB" in result.stdout


def test_416_for_a_part_of_something_else_ends_in_the_right_file(once) -> None:
    part = once.part(10_000_000)
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    once.server.faults[WEIGHTS] = Fault(tells_size=False)
    assert once.run("--models", "7b", env=fake_df(once.folder.parent, 10**10)).returncode == 0
    once.complete()
    assert once.server.sent() == len(once.server.files[WEIGHTS])
