"""Laws of wrapped checkpoints: what a wrapper does not change comes from within, and no reader goes round one.

`Doubled` holds twice the values of its files, and gives no file to read them from. Whatever reads weights must find
what it finds in a folder that was saved with twice the values.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from conversions import TINY, VOCAB, content
from ranks import ROOT
from tiny_models import random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path

from llama.checkpoint import HuggingFaceCheckpoint, MetaCheckpoint, load_weights, open_checkpoint
from llama.checkpoint.base import Checkpoint, Range
from llama.checkpoint.convert import convert
from llama.checkpoint.fingerprint import fingerprint
from llama.checkpoint.opening import LAYOUTS
from llama.checkpoint.wrapped import WrappedCheckpoint
from llama.distributed.parallel import Parallel
from llama.model import Transformer

CPU = torch.device("cpu")
# Who asks for the files themselves, and must first ask `is_mapped`. A new one belongs into the tests below.
READS_FILES = {"base.py", "convert/conversion.py", "load.py"}


class Doubled(WrappedCheckpoint):
    """Twice the values of another checkpoint."""

    def is_mapped(self, name: str) -> bool:
        return False

    def parts(self, name: str, rows: Range, columns: Range | None) -> NoReturn:
        raise AssertionError(f"{name} was read from the file")

    def compute(self, name: str, rows: Range, columns: Range | None) -> torch.Tensor:
        size = [rows[1] - rows[0], *([] if columns is None else [columns[1] - columns[0]])]
        out = torch.empty(size)
        self.source.read(name, out, rows, columns)
        return out * 2


@pytest.fixture(scope="module", params=["meta", "hf"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Checkpoint, Checkpoint]:
    """A wrapper that doubles, and the same from a file."""
    place = tmp_path_factory.mktemp("doubled")
    weights = {name: value.bfloat16() for name, value in random_weights(TINY, VOCAB).items()}
    opened = []
    for factor in (1, 2):
        folder = place / str(factor)
        tensors = {name: value * factor for name, value in weights.items()}
        save_checkpoint(folder, TINY, tensors, tiny_model_path(), 2, torch.bfloat16)
        if request.param == "hf":
            convert(open_checkpoint(folder), place / f"{factor}-hf", layout="hf")
            folder = place / f"{factor}-hf"
        opened.append(open_checkpoint(folder))
    return Doubled(opened[0]), opened[1]


Pair = tuple[Checkpoint, Checkpoint]


def loaded(checkpoint: Checkpoint, parallel: Parallel, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        model = Transformer(checkpoint.args, parallel=parallel)
    load_weights(model, checkpoint, CPU, dtype)
    return model.state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_loading_reads_through_it(pair: Pair, size: int, dtype: torch.dtype) -> None:
    for rank in range(size):
        ours, theirs = (loaded(each, Parallel(rank, size), dtype) for each in pair)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["meta", "hf"])
def test_converting_reads_through_it(tmp_path: Path, pair: Pair, layout: str, dtype: torch.dtype) -> None:
    for name, each in zip(("ours", "theirs"), pair, strict=True):
        convert(each, tmp_path / name, layout=layout, dtype=dtype)
    assert content(tmp_path / "ours") == content(tmp_path / "theirs")


def test_the_fingerprint_reads_through_it(pair: Pair) -> None:
    assert fingerprint(pair[0]) == fingerprint(pair[1])
    assert isinstance(pair[0], Doubled)
    assert fingerprint(pair[0].source) != fingerprint(pair[1])


def test_nobody_else_reads_the_files() -> None:
    place = ROOT / "llama"
    found = {
        path: text for path in place.rglob("*.py") if re.search(r"\.parts\(.*rows", text := path.read_text())
    }
    readers = [
        path
        for path, text in found.items()
        if not re.search(r"class \w+\(WrappedCheckpoint\)|class WrappedCheckpoint", text)
    ]
    assert {str(path.relative_to(place / "checkpoint")) for path in readers} == READS_FILES
    for each in READS_FILES:
        assert "is_mapped(" in found[place / "checkpoint" / each]


# ---- what it hands on --------------------------------------------------------------------------------------


class Told(Checkpoint):
    """Says of each question that it was asked."""

    def __init__(self, inside: Checkpoint) -> None:
        for name in inspect.get_annotations(Checkpoint):
            setattr(self, name, getattr(inside, name))
        self.mp_shards, self.quantization, self.notes = 7, "Q", ["a note"]

    @classmethod
    def recognizes(cls, folder: Path) -> bool:
        return True

    def __getattribute__(self, name: str) -> Any:
        if name in _asked():
            return lambda *args: (name, args)
        return super().__getattribute__(name)

    def parts(self, name: str, rows: Range, columns: Range | None) -> Any: ...

    def stored(self) -> Any: ...


def _asked() -> set[str]:
    """The methods by which a layout answers: those that some layout, or the base class for it, has of its own."""
    own = {name for layout in LAYOUTS for name, value in vars(layout).items() if inspect.isfunction(value)}
    hooks = {name for name in own if name in vars(Checkpoint) and not name.startswith("_")}
    return hooks | {"form", "blocks", "is_mapped", "compute", "parts", "stored", "disagreements"}


def test_a_wrapper_hands_on_every_question(pair: Pair) -> None:
    inside = Told(pair[1])
    wrapped = WrappedCheckpoint(WrappedCheckpoint(inside))
    for name in inspect.get_annotations(Checkpoint):
        assert getattr(wrapped, name) == getattr(inside, name), name
    assert wrapped.notes == ["a note"]
    for name in _asked():
        ask: Callable[..., Any] = getattr(wrapped, name)
        arguments = [object() for _ in inspect.signature(ask).parameters]
        assert ask(*arguments) == (name, tuple(arguments))


def test_a_wrapped_folder_is_treated_as_what_it_is(tmp_path: Path, pair: Pair) -> None:
    """Shards and companion files of a conversion."""
    source = pair[1]
    for name, each in (("inside", source), ("wrapped", WrappedCheckpoint(source))):
        for layout in ("meta", "hf"):
            convert(each, tmp_path / name / layout, layout=layout)
    assert content(tmp_path / "inside") == content(tmp_path / "wrapped")
    wrapped = WrappedCheckpoint(source)
    assert wrapped.shards == source.shards
    assert list(_names(wrapped)) == list(_names(source))
    assert not any(
        layout.recognizes(tmp_path) for layout in (MetaCheckpoint, HuggingFaceCheckpoint, WrappedCheckpoint)
    )


def _names(checkpoint: Checkpoint) -> Iterator[str]:
    return (name for name, _, _ in checkpoint.stored())
