"""Answers that are not the file: errors, web pages, wrong bytes, too many bytes, wrong checksums."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from download_script import HELD, SCRIPT, WEIGHTS, Script, fake_df, needs_tools, wrong
from download_server import Fault, checkpoint

pytestmark = needs_tools


def test_403_stops_at_once(script) -> None:
    script.server.files |= checkpoint("13b")
    script.server.faults["CodeLlama-7b/checklist.chk"] = Fault(status=403)
    result = script.run("--models", "7b,13b")
    assert result.returncode == 1
    assert "403: the URL has expired, or was used as often as it may be." in result.stderr
    assert [one.path for one in script.server.requests] == ["CodeLlama-7b/checklist.chk"]


def test_403_in_the_middle_keeps_what_is_there(once) -> None:
    once.server.files |= checkpoint("13b")
    once.server.faults["CodeLlama-13b/consolidated.00.pth"] = Fault(status=403)
    once.part(150_000, "CodeLlama-13b/consolidated.00.pth")
    result = once.run("--models", "7b,13b")
    assert result.returncode == 1
    once.complete("7b")
    assert (once.folder / "CodeLlama-13b/consolidated.00.pth.part").stat().st_size == 150_000
    assert len(once.server.gets("13b/consolidated.01.pth")) == 0
    asked, unasked = re.findall(r"^  CodeLlama-13b/consolidated.*$", result.stderr, re.MULTILINE)
    assert asked.endswith("00.pth: the server answered 403")
    assert unasked.endswith("01.pth: it was not asked for after that")
    assert result.stderr.rstrip().endswith(
        f"--models 13b --dir {str(once.folder).replace(' ', chr(92) + ' ')}"
    )


@pytest.mark.parametrize("body", [b"<!DOCTYPE html><html>" + b"Sign in. " * 9000, b"Rar!" + b"x" * 90_000])
def test_what_is_no_zip_is_refused_on_its_first_bytes(script, body) -> None:
    script.server.faults[WEIGHTS] = Fault(body=body * 20, hold=HELD)
    result = script.run("--models", "7b", env={"CODELLAMA_PATIENCE": "600"})
    assert result.returncode == 1
    why = "sent a web page" if body.startswith(b"<") else "is not a zip file"
    assert re.search(rf"  {WEIGHTS}: .*{why}", result.stderr)
    assert len(script.server.gets()) == 1
    assert script.server.sent() < len(body) * 20, "the rest is not waited for"
    assert not list(script.folder.rglob("*.pth*")), "junk must not be continued"


def test_a_web_page_does_not_cost_what_was_fetched_before(script) -> None:
    part = script.part(150_000)
    script.server.faults[WEIGHTS] = Fault(body=b"<html>Sign in.</html>")
    assert script.run("--models", "7b").returncode == 1
    script.server.faults.clear()
    if script.fetcher == "wget":
        assert part.stat().st_size == 150_000
    assert script.run("--models", "7b").returncode == 0
    script.complete()


@pytest.mark.parametrize("name", ["checklist.chk", "params.json", "tokenizer.model"])
def test_a_web_page_is_not_taken_for_a_small_file(once, name) -> None:
    once.server.faults[f"CodeLlama-7b/{name}"] = Fault(body=b"<html>Sign in.</html>")
    result = once.run("--models", "7b")
    assert result.returncode == 1
    assert f"  CodeLlama-7b/{name}: the server sent a web page" in result.stderr
    assert not (once.folder / "CodeLlama-7b" / name).exists()


def test_a_page_that_begins_with_no_tag_is_known_by_its_kind(once) -> None:
    once.server.faults["CodeLlama-7b/tokenizer.model"] = Fault(
        body=b"Sign in.", kind="text/html; charset=utf-8"
    )
    result = once.run("--models", "7b")
    assert result.returncode == 1
    assert "  CodeLlama-7b/tokenizer.model: the server sent a web page" in result.stderr
    assert len(once.server.gets("tokenizer.model")) == 1


@pytest.mark.parametrize("told", [True, False], ids=["told", "untold"])
def test_no_more_bytes_are_taken_than_announced_or_than_such_a_file_can_have(script, told) -> None:
    path = WEIGHTS if told else "CodeLlama-7b/params.json"
    script.server.files[path] = script.server.files[path].ljust(100_000)
    surplus = 64 << 20  # what is under way in sockets is far less
    script.server.faults[path] = Fault(surplus=surplus, tells_size=told)
    result = script.run("--models", "7b")
    assert result.returncode == 1
    most = "195.4 KiB that it announced" if told else "1.0 MiB that such a file can have"
    assert f"  {path}: the server sent more than the {most}" in result.stderr.splitlines()
    (request,) = script.server.gets(path)
    assert request.sent < surplus / 2
    assert not list(script.folder.rglob(Path(path).name + "*"))


def lengths_told(script: Script, model: str, lengths: list[str]) -> list[str]:
    """Have the server tell `lengths` for the model's shards; the paths of those."""
    script.server.files |= checkpoint(model, size=2000)
    paths = [f"CodeLlama-{model}/consolidated.{shard:02d}.pth" for shard in range(len(lengths))]
    script.server.faults |= {path: Fault(length=told) for path, told in zip(paths, lengths, strict=True)}
    return paths


def test_an_odd_length_is_read_as_a_decimal_number_or_not_at_all(script) -> None:
    paths = lengths_told(script, "70b", ["08", "+5", "9, 9", "1e3", "0x10", "0", "-1"])
    result = script.run("--models", "70b", "--dry-run", env=fake_df(script.folder.parent, 10**10))
    assert (result.returncode, result.stderr) == (0, "")
    # Where the server tells no length, the published one is taken.
    sizes = ["8 B", *["16.3 GiB"] * 6]
    expected = [f"{path}: {size} to fetch." for path, size in zip(paths, sizes, strict=True)]
    assert [line for line in expected if line not in result.stdout.splitlines()] == []


def test_a_length_that_such_a_file_cannot_have_is_refused(script) -> None:
    paths = lengths_told(script, "13b", ["9" * 30, str(10**11)])
    result = script.run("--models", "13b", "--dry-run", env=fake_df(script.folder.parent, 10**10))
    assert result.returncode == 1
    why = "the server announces more than the 24.2 GiB that such a file can have"
    assert [line for line in result.stderr.splitlines() if "announces" in line] == [
        f"  {path}: {why}" for path in paths
    ]


def test_416_where_nothing_was_fetched_yet_is_an_error(once) -> None:
    once.server.faults[WEIGHTS] = Fault(status=416)
    result = once.run("--models", "7b")
    assert result.returncode == 1
    assert result.stderr.splitlines()[:2] == ["Missing:", f"  {WEIGHTS}: the server answered 416"]


def test_wrong_bytes_are_fetched_again_once(script) -> None:
    script.server.files |= checkpoint("13b")
    path = "CodeLlama-13b/consolidated.01.pth"
    script.server.faults[path] = Fault(times=1, body=wrong(script.server, path))
    assert script.run("--models", "13b").returncode == 0
    script.complete("13b")
    assert [one.range for one in script.server.gets("01.pth")] == [None, None]
    assert len(script.server.gets("00.pth")) == 1


def test_bytes_that_stay_wrong_are_given_up_after_three_fetches_and_named(once) -> None:
    once.server.files |= checkpoint("13b")
    path = "CodeLlama-13b/consolidated.00.pth"
    once.server.faults[path] = Fault(body=wrong(once.server, path))
    result = once.run("--models", "13b")
    assert result.returncode == 1
    assert f"  {path}: its content did not agree with its checksum, 3 times" in result.stderr
    assert len(once.server.gets("00.pth")) == 3
    folder = once.folder / "CodeLlama-13b"
    assert {one.name for one in folder.iterdir()} == {
        "checklist.chk",
        "params.json",
        "tokenizer.model",
        "consolidated.01.pth",
    }
    assert "All files" not in result.stdout


@pytest.mark.parametrize("lines", [b"no md5 here\n", b"", b"0" * 32 + b"  params.json\n"])
def test_a_checklist_without_the_shards_is_refused(once, lines) -> None:
    once.server.files["CodeLlama-7b/checklist.chk"] = lines
    result = once.run("--models", "7b")
    assert result.returncode == 1
    assert "  CodeLlama-7b/checklist.chk: " in result.stderr
    if lines:
        assert "it does not hold the md5 of every shard" in result.stderr
    assert once.server.gets() == []
    assert not (once.folder / "CodeLlama-7b/checklist.chk").exists()


def test_a_checklist_may_be_written_with_stars_and_carriage_returns(once) -> None:
    path = "CodeLlama-7b/checklist.chk"
    once.server.files[path] = once.server.files[path].replace(b"  ", b" *").replace(b"\n", b"\r\n")
    assert once.run("--models", "7b").returncode == 0
    once.complete()


def test_a_shard_that_the_server_lacks_is_named_with_the_line_to_run_next(once) -> None:
    once.server.files |= checkpoint("13b")
    lacking = {
        "CodeLlama-13b/consolidated.01.pth": once.server.files.pop("CodeLlama-13b/consolidated.01.pth")
    }
    result = once.run("--models", "7b,13b", "--jobs", "2")
    assert result.returncode == 1
    once.complete("7b")
    where = str(once.folder).replace(" ", "\\ ")
    assert result.stderr.splitlines() == [
        "Missing:",
        "  CodeLlama-13b/consolidated.01.pth: the server does not have it (404)",
        "The line to run next:",
        f"  bash {SCRIPT} --models 13b --dir {where} --jobs 2",
    ]
    once.server.files |= lacking
    line = result.stderr.splitlines()[-1].strip()
    env = once.environment({"CODELLAMA_URL": once.server.url})
    assert subprocess.run(["bash", "-c", line], env=env, capture_output=True).returncode == 0
    once.complete("13b")


@pytest.mark.parametrize("name", [WEIGHTS, WEIGHTS + ".part", "CodeLlama-7b/checklist.chk"])
def test_a_folder_in_the_place_of_a_file_is_no_success(once, name) -> None:
    (once.folder / name).mkdir(parents=True)
    result = once.run("--models", "7b")
    assert result.returncode == 1
    file = name.removesuffix(".part")
    assert result.stderr.splitlines()[:2] == [
        "Missing:",
        f"  {file}: a folder stands in its place; remove it",
    ]
    assert not list((once.folder / name).iterdir())
