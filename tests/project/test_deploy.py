"""Laws of deploy/: the container, the systemd unit and the compose file do what docs/deploy.md says.

No docker runs here. What can be held without it: what reaches the build and what it makes, who runs it, how its
health is checked, and that every command line is one that the program takes.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from cpu_levels import has_compiler
from packaging.requirements import Requirement
from quick_compiler import quick_compiler

from llama.cli import make_parser

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPILES = sys.platform == "linux" and has_compiler()
LIMIT = 300  # a guard against a hang


class Instruction(NamedTuple):
    """A line of the Dockerfile, and the number of its stage."""

    name: str
    words: str
    stage: int


def dockerfile() -> list[Instruction]:
    text = re.sub(r"(?m)^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    found, stage = [], -1
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, words = line.strip().partition(" ")
            stage += name == "FROM"
            found.append(Instruction(name, re.sub(r"\s+", " ", words.strip()), stage))
    return found


def words_of(name: str, stage: int) -> list[str]:
    return [each.words for each in dockerfile() if each.name == name and each.stage == stage]


def sources(stage: int) -> list[str]:
    """What a stage copies from the checkout."""
    return [
        source
        for words in words_of("COPY", stage)
        if not words.startswith("--from")
        for source in words.split()[:-1]
    ]


def reaches_the_build(path: str) -> bool:
    """By .dockerignore: the last pattern counts that names the path, or a folder above it."""
    parts = path.split("/")
    names = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    passes = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        if pattern.startswith("**/"):
            hit = any(fnmatchcase(part, pattern[3:]) for part in parts)
        else:
            hit = any(name.count("/") == pattern.count("/") and fnmatchcase(name, pattern) for name in names)
        if hit:
            passes = line.startswith("!")
    return passes


def drain() -> float:
    """Seconds that running answers may take after SIGTERM, unless a flag says otherwise."""
    return float(make_parser().parse_args(["serve", "DIR"]).drain_seconds)


def seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+)(s|m)?", text)
    assert found is not None, text
    return int(found[1]) * (60 if found[2] == "m" else 1)


# ---- the image -------------------------------------------------------------------------------------------


def test_what_the_image_copies_is_there_and_reaches_the_build() -> None:
    for stage in (0, 1):
        for source in sources(stage):
            assert (ROOT / source).exists(), source
            assert reaches_the_build(source), source


@pytest.mark.parametrize(
    "path",
    [
        ".git/config", ".venv/bin/python", "CodeLlama-tiny/consolidated.00.pth", "CodeLlama-70b/params.json",
        "llama/__pycache__/model.cpython-312.pyc", "llama/kernels/_cpu.cpython-311-x86_64-linux-gnu.so",
        "llama/kernels/_cpu.failed.txt", "api-keys", "deploy/api-keys", "tests/conftest.py",
    ],
)  # fmt: skip
def test_weights_keys_and_other_builds_stay_out_of_the_image(path: str) -> None:
    assert not reaches_the_build(path)


def test_the_build_stage_makes_a_wheel_of_the_whole_package(tmp_path: Path) -> None:
    """Its own command, on its own files, with this environment's setuptools in place of the network's.

    Its compiler only reads the sources, and makes libraries of nothing: test_distributions.py runs what a wheel holds.
    """
    for source in sources(0):
        whole = ROOT / source
        if whole.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.failed.txt")
            shutil.copytree(whole, tmp_path / "src" / source, ignore=ignored)
        else:
            (tmp_path / "src").mkdir(exist_ok=True)
            shutil.copy(whole, tmp_path / "src" / source)
    (command,) = words_of("RUN", 0)
    command = command.replace("/wheels", str(tmp_path / "wheels"))
    command = re.sub(r"^pip ", f"{shlex.quote(sys.executable)} -m pip --disable-pip-version-check ", command)
    command = command.replace("wheel --no", "wheel --no-build-isolation --no-index --no", 1)
    done = subprocess.run(
        command,
        shell=True,
        cwd=tmp_path / "src",
        env={**os.environ, "CC": quick_compiler(tmp_path / "cc")},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    # Under this name the next stage finds it, and with these extras it installs it.
    install = words_of("RUN", 1)[0]
    assert wheel.match("codellama_runtime-*.whl")
    assert '"$(ls /wheels/*.whl)[server]"' in install
    inside = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "llama").rglob("*.py")}
    assert modules <= inside
    if COMPILES:
        assert any(re.fullmatch(r"llama/kernels/_cpu\..*\.so", name) for name in inside)


def test_what_the_image_installs_is_what_was_tested() -> None:
    """torch by the index that the builder chose, at the release of constraints.txt; extras that exist."""
    (install,) = words_of("RUN", 1)
    torch, package = re.findall(r"pip install (.*?) &&", install)
    for each in (torch, package):
        assert "--constraint /tmp/constraints.txt" in each
    assert torch.endswith("--index-url ${TORCH_INDEX} torch")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = Requirement("codellama-runtime" + package[package.rindex("[") :].strip('"')).extras
    assert extras <= set(project["optional-dependencies"])


def test_the_image_does_not_run_as_root() -> None:
    """As a number, by which orchestrators check it, and which the image itself made."""
    (user,) = words_of("USER", 1)
    number, group = user.split(":")
    assert int(number) >= 1000
    assert number == group
    assert f"--uid {number} " in words_of("RUN", 1)[0]
    names = [each.name for each in dockerfile()]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("RUN", "COPY"))


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A server whose /health answers with a status -> its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *words: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_image_is_healthy_while_the_server_says_so(status: int, healthy: bool) -> None:
    (check,) = words_of("HEALTHCHECK", 1)
    program, *arguments = json.loads(check.partition("CMD ")[2])
    assert program == "python"
    (settings,) = words_of("ENV", 1)
    default = dict(word.split("=", 1) for word in settings.split())["HEALTH_URL"]
    port = make_parser().parse_args(["serve", "DIR"]).port
    assert default == f"http://127.0.0.1:{port}/health"
    assert words_of("EXPOSE", 1) == [str(port)]
    with answering(status) as address:
        environment = {**os.environ, "HEALTH_URL": f"{address}/health"}
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, timeout=LIMIT, check=False
        )
    assert (done.returncode == 0) is healthy


# ---- what is run -----------------------------------------------------------------------------------------


def container_command() -> list[str]:
    (entry,), (command,) = words_of("ENTRYPOINT", 1), words_of("CMD", 1)
    return [*json.loads(entry), *json.loads(command)]


def composed() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((DEPLOY / "codellama.service").read_text(encoding="utf-8"))
    return parser


def documented() -> list[list[str]]:
    """The lines of docs/deploy.md that start the program, under whatever it is started by."""
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8").replace("\\\n", " ")
    found = []
    for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            program = re.search(r"(?:^|[\s/])codellama (serve .*)|-m llama (serve .*)", line)
            if program is not None:
                found.append(shlex.split(program[1] or program[2]))
    return found


def test_every_command_line_is_one_that_the_program_takes() -> None:
    service = composed()["services"]["codellama"]
    start = shlex.split(unit()["Service"]["ExecStart"])
    assert start[0].endswith("/codellama")
    lines = [container_command()[1:], service["command"], start[1:], *documented()]
    assert len(lines) > 6
    for line in lines:
        options = make_parser().parse_args([word for word in line if word != "$OPTIONS"])
        assert options.folder.name, line
    # In a container only the container's own network reaches 127.0.0.1.
    assert make_parser().parse_args(container_command()[1:]).host == "0.0.0.0"
    assert make_parser().parse_args(service["command"]).host == "0.0.0.0"


def test_whoever_stops_the_server_gives_it_the_time_to_drain() -> None:
    service = composed()["services"]["codellama"]
    assert seconds(service["stop_grace_period"]) > drain() + 5
    assert seconds(unit()["Service"]["TimeoutStopSec"]) > drain() + 5
    assert words_of("STOPSIGNAL", 1) == ["SIGTERM"]
    assert service["init"] is True, "process 1 ignores signals that it has no handler for"


def test_the_composed_service_is_closed_but_for_its_port() -> None:
    service = composed()["services"]["codellama"]
    (model,) = service["volumes"]
    assert model["target"] == container_command()[2] == service["command"][1]
    assert model["read_only"] is True
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    # Of this machine alone, and with keys: whoever opens the port further has them already.
    (port,) = service["ports"]
    assert port.startswith("127.0.0.1:")
    (secret,) = service["secrets"]
    assert f"/run/secrets/{secret}" in service["command"]
    assert set(composed()["secrets"]) == {secret}
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).samefile(
        DEPLOY / "Dockerfile"
    )


@pytest.mark.parametrize("more", ["", "NoNewPrivilege=yes\n"])
def test_systemd_takes_the_unit(tmp_path: Path, more: str) -> None:
    """And would say so if a setting were misspelled."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not on this machine")
    text = (DEPLOY / "codellama.service").read_text(encoding="utf-8")
    # It looks whether the program is there.
    text = text.replace("/opt/codellama/bin/codellama", sys.executable).replace(
        "[Install]", f"{more}[Install]"
    )
    path = tmp_path / "codellama.service"
    path.write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", path], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    said = [line for line in done.stderr.splitlines() if str(path) in line or path.name in line]
    if more:
        assert "NoNewPrivilege" in "".join(said)
    else:
        assert (done.returncode, said) == (0, []), done.stderr


def test_the_unit_holds_no_rights() -> None:
    service = unit()["Service"]
    assert service["DynamicUser"] == "yes"
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"] == ""
    assert service["ProtectSystem"] == "strict"
    assert service["LoadCredential"].startswith("api-keys:")
    assert "${CREDENTIALS_DIRECTORY}/api-keys" in service["ExecStart"]
