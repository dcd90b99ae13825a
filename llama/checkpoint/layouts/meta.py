"""Meta's layout: params.json, and shards consolidated.NN.pth that each hold a slice of every split weight."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from ...errors import CheckpointMismatchError
from ...sizing.shapes import axis_of
from ..base import Checkpoint, Part, Range, checked_dtype
from ..files import is_there, some
from ..weight_files.pth import open_pth
from .meta_files import read_params, shard_files, spans, with_vocab

__all__ = ["MetaCheckpoint"]


class MetaCheckpoint(Checkpoint):
    """A folder in Meta's layout: shards are mapped, and keys and shapes checked against params.json.

    Args:
        folder: holds consolidated.NN.pth and params.json.
        max_seq_len, max_batch_size: limits to put into `args`.
        agree: refuse shards that hold different values of a replicated weight.

    Raises:
        CheckpointNotFoundError, CheckpointFormatError, CheckpointMismatchError: with the names of file and
            tensor.
        ConfigError: params.json has missing, unknown or unsupported values.
    """

    layout = "Meta"
    config_name = "params.json"

    @classmethod
    def recognizes(cls, folder: Path) -> bool:
        """Whether the folder has at least one shard and a params.json."""
        return any(folder.glob("consolidated.*.pth")) and is_there(folder / cls.config_name)

    def __init__(
        self, folder: Path, max_seq_len: int = 2048, max_batch_size: int = 1, *, agree: bool = True
    ) -> None:
        self.folder = folder
        self.files = shard_files(folder)
        args = read_params(folder, max_seq_len=max_seq_len, max_batch_size=max_batch_size)
        self._shards = [open_pth(path) for path in self.files]
        self.mapped = [shard.file for shard in self._shards]
        self.mp_shards = len(self.files)
        self.args = with_vocab(args, self._vocab())
        self.dtype = checked_dtype(self._shards[0]["tok_embeddings.weight"].dtype, folder)
        self._check(agree)

    def _vocab(self) -> int:
        embedding = self._shards[0].get("tok_embeddings.weight")
        if embedding is None or embedding.dim() != 2:
            raise CheckpointMismatchError(
                f"{self.files[0]} has no tensor tok_embeddings.weight of two dimensions"
            )
        return embedding.shape[0]

    def _check(self, agree: bool) -> None:
        shapes = self.shapes
        problems = []
        for path, shard in zip(self.files, self._shards, strict=True):
            missing = [name for name in shapes if name not in shard]
            surplus = [name for name in shard if name not in shapes]
            if missing:
                problems.append(f"{path.name} lacks {some(missing)}")
            if surplus:
                problems.append(f"{path.name} has unknown tensors {some(surplus)}")
            problems += [
                f"{path.name}: {name} is {shard[name].dtype}, the rest {self.dtype}"
                for name in shapes
                if name in shard and shard[name].dtype != self.dtype
            ][:3]
        if not problems:
            problems = [problem for name, shape in shapes.items() if (problem := self._misfit(name, shape))]
        if agree and not problems:
            problems = self.disagreements()
        if problems:
            more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise CheckpointMismatchError(
                f"{self.folder} does not fit its params.json: {'; '.join(problems[:5])}{more}."
                " Files of different models may have been mixed; fetch them again"
            )

    def _misfit(self, name: str, shape: tuple[int, ...]) -> str | None:
        """What is wrong with the shapes of a tensor's slices, or None. Together they make the full shape."""
        axis = axis_of(name)
        found = [tuple(shard[name].shape) for shard in self._shards]
        wanted = list(shape)
        if axis is not None:
            if shape[axis] % len(found):
                return f"{name} of {list(shape)} cannot lie in {len(found)} shards"
            wanted[axis] //= len(found)
        for path, each in zip(self.files, found, strict=True):
            if list(each) != wanted:
                return f"{name} in {path.name} is {list(each)}, not {wanted}"
        return None

    def disagreements(self) -> list[str]:
        first, *others = self._shards
        for file in self.mapped:
            file.check()
        return [
            f"{name} has other values in {path.name} than in {self.files[0].name}"
            for name in self.shapes
            if axis_of(name) is None
            for path, shard in zip(self.files[1:], others, strict=True)
            # Compared as bytes: NaN is not equal to itself, and finding NaNs is up to `verify`.
            if not torch.equal(_raw(first[name]), _raw(shard[name]))
        ]

    def parts(self, name: str, rows: Range, columns: Range | None) -> Iterator[Part]:
        axis = axis_of(name)
        ranges = [rows] if columns is None else [rows, columns]
        if axis is None:
            yield Part(self._shards[0][name][rows[0] : rows[1]], slice(0, rows[1] - rows[0]), None)
            return
        extents = [shard[name].shape[axis] for shard in self._shards]
        at = 0
        for span in spans(*ranges[axis], extents):
            length = span.stop - span.start
            source = self._shards[span.shard][name].narrow(axis, span.start, length)
            other = 1 - axis
            source = source.narrow(other, ranges[other][0], ranges[other][1] - ranges[other][0])
            taken = [slice(0, stop - start) for start, stop in ranges]
            taken[axis] = slice(at, at + length)
            yield Part(source, taken[0], taken[1])
            at += length

    def stored(self) -> Iterator[tuple[str, Path, torch.Tensor]]:
        for path, shard in zip(self.files, self._shards, strict=True):
            for name in self.shapes:
                yield name, path, shard[name]


def _raw(x: torch.Tensor) -> torch.Tensor:
    """A copy of a small tensor as bytes."""
    return x.contiguous().view(torch.uint8)
