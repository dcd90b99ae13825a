"""Laws of the command line: help is there at once and complete, wrong usage is 2, a named error is one line and 1."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from forked import Forked
from ranks import HANGS, ROOT

from llama.cli import VERBS, info, main

ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


HELP = """
import runpy, sys
sys.argv = ["llama", *sys.argv[1:]]
code = None
try:
    runpy.run_module("llama", run_name="__main__")
except SystemExit as stop:
    code = stop.code
heavy = {"torch", "numpy", "sentencepiece", "transformers", "fairscale"} & sys.modules.keys()
print(code, sorted(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize("verb", [(), *((verb,) for verb in VERBS)], ids=str)
def test_help_is_there_at_once(verb: tuple[str, ...]) -> None:
    """Nothing heavy is imported for it, which alone takes seconds."""
    command = [sys.executable, "-c", HELP, *verb, "--help"]
    done = subprocess.run(
        command, env=ENV, cwd=ROOT, capture_output=True, text=True, timeout=HANGS, check=False
    )
    assert done.stderr == "0 []\n"
    # Each verb in one line, and of one verb an example that can be copied.
    words = [f"  codellama {verb[0]} "] if verb else [f"{name} " for name in VERBS]
    words += [] if verb else [each.SUMMARY for each in VERBS.values()]
    for word in words:
        assert word in done.stdout, f"{word!r} is not in {done.stdout}"


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_says_what_it_does(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    out, _ = capsys.readouterr()
    for line in out[out.index("options:") :].splitlines()[1:]:
        if line.startswith("  -") and not line.startswith("  --mp N "):
            assert len(line.split()) > 2 or out[out.index(line) + len(line) + 1 :].startswith(" " * 10), line


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("explode",),
        ("info",),
        ("info", "a", "b"),
        ("verify", "--fast", "a"),
        ("convert", "a", "b"),
        ("convert", "a", "--to", "hf"),
        ("convert", "a", "b", "--to", "gguf"),
        ("convert", "a", "b", "--to", "meta", "--mp", "0"),
        ("convert", "a", "b", "--to", "meta", "--mp", "two"),
        ("convert", "a", "b", "--to", "meta", "--dtype", "int8"),
        ("estimate", "--model", "7b", "--seq", "-5"),
        ("estimate", "--model", "7b", "--batch", "1.5"),
        ("estimate", "--model", "7b", "--quant", "int2"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(run: Any, arguments: tuple[str, ...]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "usage:" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("info", "nowhere"), ("nowhere", "does not exist")),
        (("verify", "nowhere"), ("nowhere", "does not exist")),
        (("convert", "nowhere", "out", "--to", "hf"), ("nowhere", "does not exist")),
        (("estimate", "--model", "nowhere"), ("nowhere", "7b, 13b, 34b, 70b")),
        (("estimate", "--model", "8b"), ("'8b'", "7b, 13b, 34b, 70b")),
        (("estimate",), ("--model", "--table")),
        (("estimate", "--model", "7b", "--mp", "3"), ("size 3", "sizes that work: 1, 2, 4, 8, 16")),
        (("info", "meta", "--tokenizer", "nowhere.model"), ("nowhere.model",)),
        (("convert", "meta", "out", "--to", "hf", "--mp", "2"), ("--mp",)),
        (("convert", "meta", "out", "--to", "meta", "--mp", "3"), ("3 shards", "use one of 1, 2")),
        (("convert", "meta", "meta", "--to", "meta"), ("meta",)),
        (("convert", "meta", "there", "--to", "meta"), ("there exists", "--force")),
        (("info", "file"), ("is a file",)),
        (("info", "empty"), ("empty",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_named_error_is_one_line_and_1(
    run: Any, meta: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(meta.parent)
    for name in ("there", "empty"):
        Path(name).mkdir()
    Path("file").write_text("x")
    before = sorted(path.name for path in meta.parent.iterdir())
    code, out, err = run(*arguments)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err, f"{word!r} is not in {err!r}"
    assert sorted(path.name for path in meta.parent.iterdir()) == before


def test_errors_of_other_kinds_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug must be seen as one."""

    def broken(*_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(info, "run", broken)
    with pytest.raises(ZeroDivisionError):
        main(["info", "x"])


def as_program(*words: str) -> int:
    """`python -m llama`."""
    sys.argv = ["llama", *words]
    runpy.run_module("llama", run_name="__main__", alter_sys=True)
    return 0


@pytest.mark.slow
def test_the_process_ends_with_the_code_and_without_a_traceback(tmp_path: Path) -> None:
    done = Forked(tmp_path / "said", as_program, "info", "nowhere")
    assert (done.wait(), done.stdout) == (1, "")
    assert re.fullmatch(r"error: .*nowhere.*\n", done.stderr)


def test_both_commands_are_one() -> None:
    """`codellama` is installed as the same function."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'codellama = "llama.cli:main"' in project


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"codellama {metadata.version('codellama-runtime')}\n"
