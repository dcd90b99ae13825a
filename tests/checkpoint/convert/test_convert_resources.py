"""Laws of `convert` and its machine: memory stays small, and a full or failing disk leaves nothing behind."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import convert_faults
import pytest
from conversions import (
    VOCAB,
    WIDE,
    content,
    left_in,
    refused,
    to,
)
from forked import Forked
from ranks import HANGS, ROOT
from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path

from llama.checkpoint import open_checkpoint
from llama.checkpoint.convert import conversion, convert
from llama.checkpoint.weight_files.output_file import OutputFile
from llama.errors import (
    CheckpointWriteError,
)

# Converts to Hugging Face's layout and back, with windows of a sixteenth of the usual size. Prints the peak
# growth of the process's memory in each, in bytes.
CONVERT = """
import sys
from pathlib import Path
from llama.checkpoint import base, open_checkpoint
from llama.checkpoint.convert import conversion, convert
conversion._WINDOW //= 16
base._WINDOW //= 16
def status(key):
    return next(int(l.split()[1]) * 1024 for l in Path("/proc/self/status").open() if l.startswith(key))
place = Path(sys.argv[1])
for source, target, layout, shards in (("meta", "hf", "hf", None), ("hf", "back", "meta", 2)):
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status("VmRSS")
    convert(open_checkpoint(place / source), place / target, layout=layout, shards=shards)
    print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_stays_small_in_both_directions(tmp_path: Path) -> None:
    """Largest tensor x 3 + 30 MB at the peak, and the model is a good deal larger than that."""
    params = {**SHAPE, "dim": 512, "n_layers": 6, "n_heads": 8, "n_kv_heads": 8, "multiple_of": 2048}
    weights = random_weights(params, VOCAB)
    largest = max(value.nbytes for value in weights.values())
    total = sum(value.nbytes for value in weights.values())
    limit = 3 * largest + 30e6
    assert total > 2 * limit
    save_checkpoint(tmp_path / "meta", params, weights, tiny_model_path())
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CONVERT, str(tmp_path)]
    most: list[int] = []
    # What convert takes itself, it takes each time. Pages of libraries that a busy system had dropped before count too:
    # when all of them were dropped in a trial, the peaks were 9 and 14 MB higher.
    for _ in range(3):
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HANGS, check=False)
        assert done.returncode == 0, done.stderr
        grown = list(map(int, done.stdout.split()))
        most = [min(pair) for pair in zip(most, grown, strict=True)] if most else grown
        if max(most) <= limit:
            break
        shutil.rmtree(tmp_path / "hf")
        shutil.rmtree(tmp_path / "back")
    assert max(most) <= limit, f"{max(most) / 1e6:.0f} MB for a model of {total / 1e6:.0f} MB"


@pytest.mark.parametrize("way", ["file", "permissions"])
def test_a_parent_that_cannot_be_written(meta: Path, way: str) -> None:
    """root may write anywhere, so a test that runs as root steps down for a moment."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        shutil.copytree(meta, place / "source")
        parent = place / "parent"
        opened = open_checkpoint(place / "source")
        if way == "file":
            parent.write_text("mine")
        else:
            parent.mkdir()
            parent.chmod(0o555)
        root = way == "permissions" and os.geteuid() == 0
        before = content(place)
        if root:
            os.seteuid(65534)
        try:
            with pytest.raises(CheckpointWriteError, match=str(parent)) as caught:
                convert(opened, parent / "target", layout="meta")
        finally:
            if root:
                os.seteuid(0)
        words = "may not be written" if way == "permissions" else "is a file, not a folder"
        assert words in str(caught.value)
        assert content(place) == before
        assert left_in(place) == ["parent", "source"]


def test_too_little_disk_is_told_before_anything_is_written(
    tmp_path: Path, meta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []
    monkeypatch.setattr(conversion, "_write_file", lambda *a: written.append(a))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1, used=1, free=20_000_000))
    text = refused(CheckpointWriteError, "hf", meta, tmp_path / "out" / "target")
    assert "0.02 GB free" in text
    assert "needs 0.03 GB" in text
    assert not written


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("layout", ["meta", "hf"])
def test_a_write_that_fails_in_the_middle_leaves_nothing(
    tmp_path: Path, meta: Path, monkeypatch: pytest.MonkeyPatch, layout: str, number: int
) -> None:
    name = {"meta": "PthWriter", "hf": "SafetensorsWriter"}[layout]
    writer = getattr(conversion, name)
    calls = []

    def write(self: Any, chunks: Any, write: Any = writer.write) -> None:
        calls.append(1)
        write(self, chunks)
        if len(calls) > 6:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writer, "write", write)
    text = refused(CheckpointWriteError, layout, meta, tmp_path / "out" / "target")
    assert "Nothing was left behind" in text
    assert ("is full" in text) == (number != errno.EIO)
    monkeypatch.undo()
    to(layout, meta, tmp_path / "out" / "target")


def test_a_file_that_does_not_read_back_is_an_error(
    tmp_path: Path, meta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that loses a byte: found before the folder gets its name."""
    close = conversion.PthWriter.close

    def spoiled(self: Any) -> Any:
        digest = close(self)
        data = bytearray(self.path.read_bytes())
        data[len(data) // 2] ^= 1
        self.path.write_bytes(data)
        return digest

    monkeypatch.setattr(conversion.PthWriter, "close", spoiled)
    text = refused(CheckpointWriteError, "meta", meta, tmp_path / "out" / "target")
    assert "does not read back" in text
    assert ".pth" in text


@pytest.mark.parametrize("layout", ["meta", "hf"])
def test_a_file_that_does_not_read_back_is_refused(
    tmp_path: Path, meta: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    close, damaged = OutputFile.close, set()

    def damaging(self: OutputFile) -> None:
        close(self)
        if self.path in damaged:
            return
        damaged.add(self.path)
        with self.path.open("r+b") as file:
            file.seek(self.written // 2)
            byte = file.read(1)
            file.seek(self.written // 2)
            file.write(bytes([byte[0] ^ 1]))

    monkeypatch.setattr(OutputFile, "close", damaging)
    assert "does not read back" in refused(CheckpointWriteError, layout, meta, tmp_path / "b")


def assert_one_error_line(stderr: str, words: str) -> None:
    assert stderr.startswith("error: ")
    assert len(stderr.splitlines()) == 1, stderr
    assert words in stderr


@pytest.mark.slow
def test_a_quota_that_ends_in_the_middle_leaves_nothing(tmp_path: Path, meta: Path) -> None:
    arguments = ["convert", str(meta), str(tmp_path / "out" / "target"), "--to", "hf"]
    child = Forked(tmp_path / "child", convert_faults.with_a_quota, 100_000, arguments)
    assert child.wait() == 1
    assert_one_error_line(child.stderr, "Nothing was left behind")
    assert left_in(tmp_path / "out") == []


@pytest.mark.slow
@pytest.mark.parametrize(("misreported", "words"), [(True, "is full"), (False, "free")])
def test_a_disk_that_is_full(tmp_path: Path, misreported: bool, words: str) -> None:
    """A real disk of 1 MB. The error comes before anything is written or, if the system misreports, later."""
    params = {**WIDE, "dim": 128}
    big = save_checkpoint(tmp_path / "big", params, random_weights(params, VOCAB), tiny_model_path())
    assert sum(path.stat().st_size for path in big.iterdir()) > 1.5e6
    disk = tmp_path / "disk"
    disk.mkdir()
    child = Forked(tmp_path / "child", convert_faults.on_a_full_disk, str(big), str(disk), misreported)
    code = child.wait()
    if code == convert_faults.CANNOT_MOUNT:
        pytest.skip("this user may not mount a tmpfs in a namespace of its own")
    assert code == 1, child.stderr
    assert_one_error_line(child.stderr, words)
    assert child.stdout.strip() == "[]"
