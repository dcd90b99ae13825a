"""Mistakes in options, URL and environment are refused before a request; --list, --dry-run, --check-only."""

from __future__ import annotations

import socket
import subprocess

import pytest
from download_script import FETCHERS, LIMIT, SCRIPT, WEIGHTS, Script, fake_df, needs_tools, wrong
from download_server import QUERY, Server, checkpoint

pytestmark = needs_tools


def test_a_small_disk_is_found_out_first(once, tmp_path) -> None:
    result = once.run("--models", "7b", env=fake_df(tmp_path, 100))
    assert result.returncode == 1
    assert "is too small: 198.4 KiB are to be fetched and 100.0 KiB are free. Make room" in result.stderr
    assert once.server.gets() == []
    assert not (once.folder / ".download.lock").exists()
    part = once.folder / (WEIGHTS + ".part")
    part.write_bytes(once.server.files[WEIGHTS][:150_000])
    assert once.run("--models", "7b", env=fake_df(tmp_path, 100)).returncode == 0, "what is there counts"


URLS = {
    "": "The URL is empty",
    "   ": "The URL is empty",
    "someone@example.org": "This is an e-mail address, not a URL",
    "https://l.facebook.com/l.php?u=https%3A%2F%2Fdownload2.llamameta.net%2F*": "copy the text of the link instead",
    "http://download2.llamameta.net/*?Policy=abc": "begins with http://",
    "https://download2.llamameta.net/file?Policy=abc": "has no * before the ?",
    "https://download2.llamameta.net/?Policy=a*c": "has no * before the ?",
    "https://download2.llamameta.net/*?Signature=abc": "has no Policy=",
    "https://download2.llamameta.net/*": "has no Policy=",
    "https://download2.llamameta.net/*?Policy=ab c": "has a space, a quote or a backslash",
    "https://download2.llamameta.net/*?Policy=abc\nurl=https://example.org/": "has a space, a quote",
    'https://download2.llamameta.net/*?Policy="abc': "has a space, a quote or a backslash",
    "https://example.org/*?Policy=abc": "does not begin with https://download*.llamameta.net/",
    "https://download.example.org/x.llamameta.net/*?Policy=abc": "does not begin with https://download*",
    "https://download2.llamameta.net@example.org/*?Policy=abc": "does not begin with https://download*",
    "https://download@example.org#.llamameta.net/*?Policy=abc": "does not begin with https://download*",
    "https://download2@x.llamameta.net/*?Policy=abc": "does not begin with https://download*",
    "ftp://download2.llamameta.net/*?Policy=abc": "does not begin with https://download*",
    "download2.llamameta.net/*?Policy=abc": "does not begin with https://download*",
}


@pytest.mark.parametrize("url", URLS)
def test_each_mistake_in_the_url_has_its_own_sentence(once, url) -> None:
    result = once.run("--models", "7b", url=url, env={"CODELLAMA_HOST": ""})
    assert result.returncode == 2
    assert URLS[url] in result.stderr
    assert result.stderr.count("\n") == 1
    assert "abc" not in result.stderr
    assert once.server.requests == []
    assert not once.folder.exists()


def test_a_right_url_passes_the_check_and_may_have_blanks_around_it(tmp_path) -> None:
    # An unknown model is refused after the URL, and before any request.
    nowhere = Script(Server(9, {}), tmp_path / "weights", FETCHERS[0])
    url = " https://download2.llamameta.net/*?Policy=abc&Signature=def \n"
    result = nowhere.run("--models", "8b", url=url, env={"CODELLAMA_HOST": ""})
    assert "There is no model 8b." in result.stderr


def test_another_host_than_the_mirror_is_refused(once) -> None:
    result = once.run("--models", "7b", url="https://download2.llamameta.net/*?Policy=abc")
    assert (result.returncode, once.server.requests) == (2, [])
    assert f"does not begin with {once.server.host}, which CODELLAMA_HOST asks for" in result.stderr


def test_an_unknown_model_is_refused_with_the_list(once) -> None:
    result = once.run("--models", "7b,7b-Basic")
    assert result.returncode == 2
    assert (
        "There is no model 7b-basic. These are the models: 7b, 7b-Python, 7b-Instruct, 13b," in result.stderr
    )
    assert once.server.requests == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "7b"], "There is no option --model"),
        (["--models"], "--models needs a value"),
        (["--models", ","], "No model was named"),
        (["--models", "7b", "--jobs", "0"], "The number of jobs is 0; it must be a number from 1 to 16."),
        (["--models", "7b", "--jobs", "x"], "The number of jobs is x"),
        ([f"https://example.org/*?{QUERY}"], "The URL was given without --url"),
        ([f"--uri=https://example.org/*?{QUERY}"], "The URL was given without --url"),
        (["--models", f"https://example.org/*?{QUERY}"], "There is no model https://example.org/*. These"),
        (
            ["--models", "7b", "--dir", f"https://example.org/*?{QUERY}"],
            "is a URL; the URL goes behind --url",
        ),
        ([], "No model was named and there is no terminal to ask on"),
    ],
)
def test_a_wrong_call_is_refused_in_words(once, options, words) -> None:
    result = once.run(*options)
    assert (result.returncode, once.server.requests) == (2, [])
    assert words in result.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [("PATIENCE", "08"), ("PATIENCE", "0"), ("PATIENCE", "1m"), ("WAIT", "soon"), ("WAIT", "1.2.3")],
)
def test_a_variable_that_is_no_number_of_seconds_is_refused(once, variable, value) -> None:
    result = once.run("--models", "7b", env={f"CODELLAMA_{variable}": value})
    assert (result.returncode, once.server.requests) == (2, [])
    assert f"CODELLAMA_{variable} is {value}; it must be a" in result.stderr


def test_a_missing_url_is_an_error_and_no_hang_where_there_is_no_terminal(once) -> None:
    command = ["bash", str(SCRIPT), "--models", "7b"]
    result = subprocess.run(
        command,
        env=once.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert result.returncode == 2
    assert "No URL was given and there is no terminal to ask on" in result.stderr


def test_list_names_all_twelve_with_their_shards(once) -> None:
    result = once.run("--list")
    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    shards = {"7b": "1", "13b": "2", "34b": "4", "70b": "8"}
    names = [f"{size}{kind}" for size in shards for kind in ("", "-Python", "-Instruct")]
    assert [(row[0], row[1]) for row in rows] == [(name, shards[name.split("-")[0]]) for name in names]
    assert once.server.requests == []


def test_all_means_all_twelve(once) -> None:
    result = once.run("--models", "all", "--check-only")
    named = {line.split("/")[0].strip() for line in result.stderr.splitlines() if "checklist.chk" in line}
    assert len(named) == 12


def test_a_dry_run_asks_for_sizes_only_and_writes_nothing(script) -> None:
    result = script.run("--models", "7b", "--dry-run")
    assert result.returncode == 0
    assert {one.method for one in script.server.requests} == {"HEAD"}
    assert f"{WEIGHTS}: 195.4 KiB to fetch." in result.stdout
    assert "In all 198.4 KiB to fetch; nothing was written." in result.stdout
    assert not script.folder.exists()


@pytest.mark.parametrize("answer", ["404", "nothing"])
def test_a_dry_run_does_not_pass_for_what_the_server_lacks(script, answer) -> None:
    del script.server.files[WEIGHTS]
    env = {}
    if answer == "nothing":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            env["CODELLAMA_HOST"] = f"http://127.0.0.1:{free.getsockname()[1]}"
    url = env.get("CODELLAMA_HOST", script.server.host) + "/*?" + QUERY
    result = script.run("--models", "7b", "--dry-run", env=env, url=url)
    assert result.returncode == 1
    words = "answered 404" if answer == "404" else "did not answer"
    assert f"  {WEIGHTS}: the server {words}" in result.stderr.splitlines()
    assert len(result.stderr.splitlines()) == (2 if answer == "404" else 4)


def test_check_only_passes_a_good_folder_and_names_what_is_wrong_in_a_bad_one(once) -> None:
    once.server.files |= checkpoint("13b")
    assert once.run("--models", "7b,13b").returncode == 0
    before = len(once.server.requests)
    good = once.run("--check-only")
    assert good.returncode == 0
    assert good.stdout.count("verified.") == 8
    path = once.folder / "CodeLlama-13b/consolidated.01.pth"
    path.write_bytes(wrong(once.server, "CodeLlama-13b/consolidated.01.pth"))
    (once.folder / "CodeLlama-13b/params.json").unlink()
    bad = once.run("--check-only")
    assert bad.returncode == 1
    assert bad.stderr.splitlines()[:3] == [
        "Missing:",
        "  CodeLlama-13b/params.json: it is not there",
        "  CodeLlama-13b/consolidated.01.pth: its content does not agree with its checksum",
    ]
    assert "--models 13b --dir " in bad.stderr
    assert len(once.server.requests) == before
