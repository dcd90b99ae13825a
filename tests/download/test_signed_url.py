"""The signed URL is a secret: no process, file, message or other host gets to see its query."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import uuid
from pathlib import Path

import psutil
import pytest
from download_script import HELD, LIMIT, SCRIPT, SECRETS, WEIGHTS, holding, needs_tools, transfers
from download_server import QUERY, Fault, checkpoint, serving

pytestmark = needs_tools


@pytest.mark.parametrize("way", ["option", "environment"])
def test_the_query_is_in_no_process_and_no_file_while_it_is_used(script, way) -> None:
    # Of this run alone: the processes of other tests may be starting with theirs meanwhile.
    own = uuid.uuid4().hex
    script.server.query = "&".join(part + own for part in QUERY.split("&"))
    script.server.faults[WEIGHTS] = Fault(hold=HELD)
    env = {"CODELLAMA_URL": script.server.url} if way == "environment" else None
    process = script.start("--models", "7b", env=env)
    script.until_held()
    assert transfers(script.server)
    for other in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            assert own not in " ".join(other.cmdline()) + str(other.environ()), other.name()
    assert not holding(script.folder, own)
    script.server.faults[WEIGHTS].go.set()
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0
    assert own not in out + err
    assert not [secret for secret in SECRETS if secret in out + err]
    script.complete()


# What a caller may have exported: names that the script uses itself, and bash's options.
INHERITED = {
    "names": dict.fromkeys(["before", "after", "url", "secret", "answer", "size", "program"], "theirs"),
    "values": dict.fromkeys(["after", "url", "secret"], "a_proxy=theirs"),
    "options": {"SHELLOPTS": "allexport:errexit:noclobber:noglob:posix"},
}


@pytest.mark.parametrize("inherited", INHERITED)
def test_the_query_is_in_the_environment_of_no_program_whatever_the_caller_exported(
    script, tmp_path, inherited
) -> None:
    log, shims = tmp_path / "environments", tmp_path / "shims"
    told = f'{{ "{shutil.which("env")}"; echo "$0" "$@"; }} >>"{log}"'
    shims.mkdir()
    for name in (script.fetcher, "awk", "env", "head", "wc", "md5sum", "mv", "mkdir", "sed", "sleep"):
        program = shutil.which(name)
        (shims / name).write_text(f'#!/bin/sh\n{told}\nexec "{program}" "$@"\n')
        (shims / name).chmod(0o755)
    env = {"PATH": f"{shims}{os.pathsep}{os.environ['PATH']}", **INHERITED[inherited]}
    result = script.run("--models", "7b", env=env)
    assert (result.returncode, result.stderr) == (0, "")
    script.complete()
    seen = log.read_text()
    assert {Path(line.split()[0]).name for line in seen.splitlines() if line.startswith(f"{shims}/")} >= {
        script.fetcher,
        "md5sum",
    }
    assert [secret for secret in SECRETS if secret in seen] == []


def test_the_script_may_be_read_from_a_pipe(once, tmp_path) -> None:
    (tmp_path / "main").write_text("exit 9\n")  # bash's name for the file of such a script's functions
    command = ["bash", "-s", "--", "--url", once.server.url, "--models", "7b", "--dir", str(once.folder)]
    result = subprocess.run(
        command, env=once.environment(), cwd=tmp_path, input=SCRIPT.read_bytes(), capture_output=True
    )
    assert (result.returncode, result.stderr) == (0, b"")
    once.complete()


def test_no_failure_prints_the_query(script) -> None:
    """Script.run looks for the query in all that is printed and written."""
    faults = [Fault(status=404), Fault(status=302), Fault(status=500), Fault(cut=0)]
    script.server.files |= checkpoint("34b", size=2000)
    shards = [f"CodeLlama-34b/consolidated.{shard:02d}.pth" for shard in range(len(faults))]
    script.server.faults |= dict(zip(shards, faults, strict=True))
    result = script.run("--models", "34b")
    assert result.returncode == 1
    assert [shard for shard in shards if f"  {shard}: " not in result.stderr] == []
    tries = [len(script.server.gets(shard)) for shard in shards]
    assert tries[:2] == [1, 1], "what will not change is not tried again"
    assert min(tries[2:]) > 1


def test_an_expired_url_is_not_printed(script) -> None:
    """The same for 403, which ends a run at once."""
    script.server.faults[WEIGHTS] = Fault(status=403)
    result = script.run("--models", "7b")
    assert result.returncode == 1
    assert f"  {WEIGHTS}: " in result.stderr
    assert len(script.server.gets()) == 1


def test_no_redirection_is_followed(script) -> None:
    """It would hand the query to another host."""
    with serving(checkpoint("7b")) as other:
        other.query = ""
        script.server.faults[WEIGHTS] = Fault(status=302, location=f"{other.host}/{WEIGHTS}")
        assert script.run("--models", "7b").returncode == 1
        assert other.requests == []


def test_settings_of_the_users_own_are_not_read(script, tmp_path) -> None:
    home, log = tmp_path / "home", tmp_path / "weights folder" / "log"
    home.mkdir()
    log.parent.mkdir()
    (home / ".curlrc").write_text(f'trace-ascii = "{log}"\n')
    (home / ".wgetrc").write_text(f"logfile = {log}\nuser_agent = theirs\n")
    result = script.run("--models", "7b", env={"HOME": str(home), "CURL_HOME": str(home)})
    assert result.returncode == 0
    script.complete()
    assert not log.exists()


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        (["--jobs", "URL"], {}),
        ([], {"CODELLAMA_ACTION": "URL"}),
        ([], {"CODELLAMA_FETCHER": "URL"}),
        ([], {"CODELLAMA_MD5": "URL"}),
    ],
)
def test_a_url_in_the_wrong_place_is_not_repeated(once, options, environment) -> None:
    url = "https://download2.llamameta.net/*?Policy=SECRETPOLICY&Signature=SECRETSIGNATURE"
    command = ["bash", str(SCRIPT), "--models", "7b", *[each.replace("URL", url) for each in options]]
    env = once.environment() | dict.fromkeys(environment, url)
    result = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT
    )
    assert result.returncode == 2
    assert "SECRET" not in result.stdout + result.stderr
