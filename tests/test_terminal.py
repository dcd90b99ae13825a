"""Laws of what the commands print: whatever names, tensors and configs hold, a terminal gets one printable line for
each line that the program means, in whatever encoding it has; no failure of the world outside ends in a traceback; and
an exit code says how a run ended.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import HANGS, ROOT
from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama import Llama, cli
from llama.checkpoint import convert as converting
from llama.checkpoint import load, open_checkpoint, progress, verify
from llama.cli import main
from llama.distributed import environment
from llama.errors import CheckpointFormatError, ConfigError, LlamaError, TokenizerError
from llama.printable import printable, reason, say, tell

# Without PYTHONUNBUFFERED, with which nothing is left to be written at exit.
ENV = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
ENV |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
# Clears a screen, forges a line, turns a text around, ends nothing, is half a pair, is a byte that is no UTF-8.
EVIL = "a\x1b[2J\x9b2J\rb\nerror: none\u202egpj.\u2028\x00\ud800\udce9z"
# The same, as far as a file's name can hold it.
NAME = EVIL.replace("\x00", "").replace("\ud800", "")
ESCAPED = r"a\x1b[2J\x9b2J\rb\nerror: none\u202egpj.\u2028\xe9z"


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    weights = random_weights(SHAPE, tiny_tokenizer().n_words)
    return save_checkpoint(tmp_path / "meta", SHAPE, weights, tiny_model_path(), 2)


class Ascii(io.TextIOWrapper):
    """A terminal that knows ASCII only, and says so only when it is too late."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="ascii", errors="strict", write_through=True)

    def text(self) -> str:
        buffer: Any = self.buffer
        return str(buffer.getvalue().decode("ascii"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Exit code, stdout and stderr of the command, on an ASCII terminal; all of it is printable."""

    def run(*arguments: object) -> tuple[int, str, str]:
        out, err = Ascii(), Ascii()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            try:
                code = main(list(map(str, arguments)))
            except SystemExit as stop:  # argparse
                code = int(stop.code or 0)
        for text in (out.text(), err.text()):
            assert all(line.isprintable() and len(line) <= 4000 for line in text.split("\n")), repr(text)
        return code, out.text(), err.text()

    return run


def refused(run: Any, *arguments: object, code: int = 1) -> str:
    """One line on stderr, and nothing else."""
    found, out, err = run(*arguments)
    assert (found, out) == (code, ""), err
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return str(err)


# ---- printable -----------------------------------------------------------------------------------------


@given(text=st.text(max_size=300), longest=st.integers(81, 200))
def test_any_text_becomes_one_printable_line_of_bounded_length(text: str, longest: int) -> None:
    found = printable(text, longest)
    assert found.isprintable()
    assert len(found) <= longest
    assert printable(found, longest) == found
    if len(found) < longest and text.isascii():
        # Nothing is lost: the escapes are those of Python's strings.
        assert found.replace("\\", "") == "".join(
            c if c.isprintable() else ascii(c)[1:-1] for c in text
        ).replace("\\", "")
    if text.isprintable() and len(text) <= longest:
        assert found == text


def test_a_long_line_keeps_its_beginning_and_its_end() -> None:
    found = printable("begin" + "\x1b" * 10_000_000 + "download it again")
    assert found.startswith("begin\\x1b")
    assert found.endswith("download it again")
    assert len(found) <= 4000
    assert "more characters" in found


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(), "OSError"),
        (OSError(errno.EIO, os.strerror(errno.EIO)), os.strerror(errno.EIO)),
        (OSError(errno.EIO, "bad disk", "a"), "bad disk: a"),
        (ValueError(""), "ValueError"),
        (ValueError("\n"), "ValueError"),
        (MemoryError(), "MemoryError"),
        (ValueError("why"), "why"),
    ],
    ids=repr,
)
def test_a_reason_is_never_empty(error: Exception, text: str) -> None:
    assert reason(error) == text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252", "utf-16", None])
def test_a_line_goes_to_a_terminal_of_any_encoding(encoding: str | None) -> None:
    raw = io.BytesIO()
    stream = io.StringIO() if encoding is None else io.TextIOWrapper(raw, encoding=encoding, newline="\n")
    say(f"é漢{EVIL}", stream)
    text = stream.getvalue() if isinstance(stream, io.StringIO) else raw.getvalue().decode(str(encoding))
    both = ("é" if encoding != "ascii" else "\\xe9") + (
        "漢" if encoding in ("utf-8", "utf-16", None) else "\\u6f22"
    )
    assert text == both + ESCAPED.replace(r"\xe9z", r"\x00\ud800\xe9z") + "\n"
    say("nothing to print it on", None)


def test_a_message_that_nobody_can_read_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (None, closed, Broken(BrokenPipeError()), Broken(OSError(errno.EIO, "gone"))):
        monkeypatch.setattr(sys, "stderr", stream)
        tell("lost")
        environment.log("lost")


class Broken(io.StringIO):
    """A stream whose other end is gone, or whose disk is full."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise self.error


def test_work_goes_on_when_the_terminal_of_its_bar_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(0, 1000, 10))
    for stream in (Broken(OSError(errno.EIO, "gone")), None):
        monkeypatch.setattr(sys, "stderr", stream)
        bar = progress.Progress(100, "converting", lambda: next(times))
        for _ in range(10):
            bar(10)


def test_what_is_logged_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    environment.log(f"Loaded {EVIL}")
    assert capsys.readouterr().err == printable(f"Loaded {EVIL}") + "\n"


# ---- names of strangers, through every verb --------------------------------------------------------------


def test_a_folder_with_an_evil_name(run: Any, meta: Path) -> None:
    """Sound inside, of Hugging Face's layout, since torch opens no name that is not UTF-8."""
    evil = meta.parent / NAME
    assert run("convert", meta, evil, "--to", "hf")[:2] == (
        0,
        run("convert", meta, meta.parent / "plain", "--to", "hf")[1].replace("plain", ESCAPED),
    )
    assert run("info", evil)[::2] == (0, "")
    assert run("verify", evil)[::2] == (0, "")
    code, out, _ = run("estimate", "--model", evil)
    assert code == 0
    assert ESCAPED in out.splitlines()[0]
    assert ESCAPED in refused(run, "convert", meta, evil, "--to", "hf")
    assert ESCAPED in refused(run, "info", evil / "inner")
    for verb in (("info",), ("verify",), ("estimate", "--model")):
        assert "none" in refused(run, *verb, meta.parent / f"no{NAME}")
    assert ESCAPED in refused(run, "info", meta, "--tokenizer", evil / "none.model")


def test_evil_names_of_files(run: Any, meta: Path) -> None:
    """In a listing of what is there, in a checklist, in what stands in the way."""
    (meta.parent / "other").mkdir()
    (meta.parent / "other" / NAME).touch()
    assert ESCAPED in refused(run, "info", meta.parent / "other")
    assert ESCAPED in refused(run, "convert", meta, meta.parent / "other", "--to", "hf", "--force")
    sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.name}\n" for path in meta.iterdir()]
    (meta / "checklist.chk").write_text("".join(sums))
    (meta / f"consolidated.{NAME}.pth").touch()
    code, out, _ = run("verify", meta, "--quick")
    assert code == 0
    code, out, _ = run("verify", meta)
    assert code == 1
    assert f"consolidated.{ESCAPED}.pth is not in checklist.chk" in out
    assert [line[:4] for line in out.splitlines()] == ["fail", *["pass"] * 4, "skip", "skip"]


@pytest.mark.parametrize("layout", ["meta", "hf"])
def test_evil_names_of_tensors_and_keys(run: Any, meta: Path, layout: str) -> None:
    text = EVIL.replace("\ud800\udce9", "")  # a header is UTF-8
    if layout == "meta":
        path = meta / "consolidated.00.pth"
        torch.save(torch.load(path, weights_only=True) | {text: torch.ones(1)}, path)
        config = meta / "params.json"
    else:
        assert run("convert", meta, meta.parent / "hf", "--to", "hf")[0] == 0
        meta = meta.parent / "hf"
        path = meta / "model.safetensors"
        safetensors.torch.save_file(safetensors.torch.load_file(path) | {text: torch.ones(1)}, path)
        config = meta / "config.json"
    for verb in (("info",), ("estimate", "--model"), ("convert",)):
        more = (meta.parent / "out", "--to", "meta") if verb == ("convert",) else ()
        assert r"\x1b[2J" in refused(run, *verb, meta, *more)
    code, out, _ = run("verify", meta)
    assert code == 1
    assert r"\x1b[2J" in out
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {EVIL: EVIL, "model_type": EVIL, "hidden_act": EVIL * 5000}))
    assert r"\x1b[2J" in refused(run, "info", meta)


def test_evil_words_of_the_command_line(run: Any, meta: Path) -> None:
    for arguments in (
        (EVIL,),
        ("info", meta, NAME),
        ("info", EVIL),
        ("convert", meta, "b", "--to", EVIL),
        ("convert", meta, "a\0b", "--to", "hf"),
        ("convert", meta, "", "--to", "hf", "--force"),
        ("info", ""),
        ("info", meta, "--tokenizer", ""),
        ("estimate", "--model", "7b", "--seq", EVIL),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, ""), arguments
        assert err.splitlines()[-1].startswith("codellama")
        assert not any(line.startswith("error: none") for line in err.splitlines())
    assert r"'a\x1b[2J" in refused(run, "estimate", "--model", EVIL)


@pytest.mark.parametrize(
    "text", ["0", "-1", "1" + "0" * 400, "9" * 5000, "²", "1.5", "nan", "1e3", "", "٣", "00"]
)
@pytest.mark.parametrize("flag", ["--mp", "--seq", "--batch"])
def test_a_number_out_of_range_is_wrong_usage(run: Any, flag: str, text: str) -> None:
    code, out, err = run("estimate", "--model", "7b", f"{flag}={text}")
    assert (code, out) == (2, "")
    assert f"argument {flag}: " in err.splitlines()[-1]
    assert "_positive" not in err


def test_the_largest_numbers_are_answered(run: Any) -> None:
    most = "9" * 12
    assert run("estimate", "--model", "70b", "--seq", most, "--batch", most, "--dtype", "float32")[0] == 0
    assert "size 999999999999" in refused(run, "estimate", "--model", "7b", "--mp", most)


# ---- a world that fails ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(), "error: OSError\n"),
        (OSError(errno.EIO, "bad disk", f"/{EVIL}"), f"error: {printable(f'bad disk: /{EVIL}')}\n"),
        (MemoryError(), "error: not enough memory (MemoryError)\n"),
        (LlamaError(), "error: LlamaError\n"),
        (KeyboardInterrupt(), "interrupted\n"),
    ],
    ids=repr,
)
def test_a_failure_of_the_world_is_one_line(
    run: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, words: str
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(cli, "_info", fail)
    assert run("info", "x") == (130 if isinstance(error, KeyboardInterrupt) else 1, "", words)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "bad disk"), OSError()], ids=repr)
def test_a_folder_that_fails_under_the_reader_is_a_named_error(
    meta: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def fail(*_: object) -> bytes:
        raise error

    monkeypatch.setattr(load, "shard_files", fail)
    with pytest.raises(CheckpointFormatError, match=f"cannot be read: {reason(error)}"):
        open_checkpoint(meta)
    findings = {each.name: each for each in verify.verify(meta, quick=True)}
    assert findings["tensors"].status == "fail"
    assert reason(error) in findings["tensors"].why


@pytest.mark.parametrize("text", [5, None, b"x", [], "a\0b", "\ud800", ""], ids=repr)
def test_what_is_no_path_is_a_named_error(meta: Path, text: Any) -> None:
    with pytest.raises(LlamaError):
        Llama.build(text, None, 64, 1, device="cpu")
    if text is not None:
        with pytest.raises((ConfigError, TokenizerError)):
            Llama.build(meta, text, 64, 1, device="cpu")


@pytest.mark.parametrize(
    "options",
    [
        {"max_seq_len": 10**400},
        {"max_batch_size": 10**400},
        {"device": 10**400},
        {"device": float("nan")},
        {"dtype": object()},
        {"model_parallel_size": 10**400},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_parameter_of_build_out_of_range_is_a_named_error(meta: Path, options: dict[str, Any]) -> None:
    with pytest.raises(LlamaError):
        Llama.build(
            **{"ckpt_dir": meta, "tokenizer_path": None, "max_seq_len": 64, "max_batch_size": 1} | options
        )


def test_a_host_programs_thread_may_run_a_verb(run: Any) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(run("estimate", "--model", "7b")[0]))
    thread.start()
    thread.join(HANGS)
    assert found == [0]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_closed_terminal_is_ignored_under_nohup(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    during: list[Any] = []
    monkeypatch.setattr(cli, "_info", lambda _: during.append(signal.getsignal(signal.SIGHUP)) or 0)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run("info", "x")
        assert during == [signal.SIG_IGN]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_ends_a_verb_with_one_line_and_its_code(
    run: Any, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    if not hasattr(signal, name):
        pytest.skip("this system has no such signal")
    monkeypatch.setattr(cli, "_info", lambda _: signal.raise_signal(getattr(signal, name)) or 0)
    assert run("info", "x") == (code, "", "interrupted\n" if code == 130 else "terminated\n")


PROCESS = """
import sys
from llama import cli
def rows(_):
    for number in range(3):
        cli._out(f"row {number} \\u202e")
    return 0
cli._info = rows
sys.exit(cli.main(sys.argv[1:]))
"""


def process(*arguments: str, code: str = PROCESS, **options: Any) -> SimpleNamespace:
    """A process of its own: what Python itself does with a stream at its end shows there only."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        **{"env": ENV, "cwd": ROOT, "stderr": subprocess.PIPE, "timeout": HANGS, "check": False} | options,
    )
    return SimpleNamespace(code=done.returncode, err=done.stderr and done.stderr.decode())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("verb", ["info", "--help"])
def test_a_stdout_that_is_full_is_an_error(verb: str) -> None:
    with open("/dev/full", "wb") as full:
        done = process(verb, *(["x"] if verb == "info" else []), stdout=full)
    assert (done.code, done.err) == (1, f"error: {os.strerror(errno.ENOSPC)}\n")


@pytest.mark.parametrize("verb", ["info", "--help"])
@pytest.mark.parametrize("joined", [False, True])
def test_a_reader_that_is_gone_ends_it_quietly(verb: str, joined: bool) -> None:
    """128 and SIGPIPE, as for any program in a pipe: verify that was not read to its end is no success."""
    reads, writes = os.pipe()
    os.close(reads)
    more = {"stderr": writes} if joined else {}
    done = process(verb, *(["x"] if verb == "info" else []), stdout=writes, **more)
    os.close(writes)
    assert done.code == 141
    assert not done.err


def test_a_process_whose_streams_are_closed() -> None:
    done = process("info", "x", preexec_fn=lambda: (os.close(1), os.close(2)))
    assert done.code == 0


def test_convert_tells_the_names_it_wrote_in_ascii(
    run: Any, meta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = converting.Converted(meta / NAME, (NAME,), 1, torch.float32)
    monkeypatch.setattr(converting, "convert", lambda *_, **__: done)
    code, out, _ = run("convert", meta, meta.parent / "x", "--to", "hf")
    assert code == 0
    assert out.splitlines()[1] == f"  {ESCAPED}"
