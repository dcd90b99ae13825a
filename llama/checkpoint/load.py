"""Meta shards -> the weights of one rank: mapped files, only this rank's slices, assigned.

Nothing is allocated before every file, key and shape has been checked. While it copies, a rank holds
its own weights and a small window of the mapped files.
"""

from __future__ import annotations

import ctypes
import mmap
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointFormatError, CheckpointMismatchError
from ..linear import can_prepare
from ..model import ModelArgs, Transformer
from .format import IGNORED, axis_of, expected_shapes, shard_files, spans, wanted_range, with_vocab

__all__ = ["MetaCheckpoint", "load_weights"]

# Bytes of a shard that are copied before their pages are given back.
_WINDOW = 32 << 20


class MetaCheckpoint:
    """An opened folder: its shards are mapped, its keys and shapes checked against its params.

    Args:
        folder: with consolidated.NN.pth.
        args: from its params.json; `self.args` has the vocabulary filled in.

    Raises:
        CheckpointNotFoundError, CheckpointFormatError, CheckpointMismatchError: naming file and tensor.
    """

    def __init__(self, folder: Path, args: ModelArgs) -> None:
        self.folder = folder
        self.files = shard_files(folder)
        self.shards = [_open(path) for path in self.files]
        self.args = with_vocab(args, self._vocab())
        self._check()

    @property
    def dtype(self) -> torch.dtype:
        """As stored."""
        return self.shards[0]["tok_embeddings.weight"].dtype

    def _vocab(self) -> int:
        embedding = self.shards[0].get("tok_embeddings.weight")
        if embedding is None or embedding.dim() != 2:
            raise CheckpointMismatchError(
                f"{self.files[0]} has no tensor tok_embeddings.weight of two dimensions"
            )
        return embedding.shape[0]

    def _check(self) -> None:
        shapes = expected_shapes(self.args)
        problems = []
        for path, shard in zip(self.files, self.shards, strict=True):
            missing = [name for name in shapes if name not in shard]
            surplus = [name for name in shard if name not in shapes]
            if missing:
                problems.append(f"{path.name} lacks {_some(missing)}")
            if surplus:
                problems.append(f"{path.name} has unknown tensors {_some(surplus)}")
            problems += [
                f"{path.name}: {name} is {shard[name].dtype}, the rest {self.dtype}"
                for name in shapes
                if name in shard and shard[name].dtype != self.dtype
            ][:3]
        if not problems:
            problems = [problem for name, shape in shapes.items() if (problem := self._misfit(name, shape))]
        if problems:
            more = f", and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise CheckpointMismatchError(
                f"{self.folder} does not fit its params.json: {'; '.join(problems[:5])}{more}."
                " Files of different models may have been mixed; fetch them again"
            )

    def _misfit(self, name: str, shape: tuple[int, ...]) -> str | None:
        """What is wrong with a tensor's shapes in the shards; together they must make up the whole."""
        axis = axis_of(name)
        found = [tuple(shard[name].shape) for shard in self.shards]
        wanted = list(shape)
        if axis is not None:
            if shape[axis] % len(found):
                return f"{name} of {list(shape)} cannot lie in {len(found)} shards"
            wanted[axis] //= len(found)
        for path, each in zip(self.files, found, strict=True):
            if list(each) != wanted:
                return f"{name} in {path.name} is {list(each)}, not {wanted}"
        return None

    def copy_slice(self, name: str, out: torch.Tensor, rank: int, size: int) -> None:
        """Fill `out` with what rank `rank` of `size` holds of a tensor, converting dtype and device."""
        axis = axis_of(name)
        if axis is None:
            _copy(self.shards[0][name], out)
            return
        extents = [shard[name].shape[axis] for shard in self.shards]
        start, stop = wanted_range(name, sum(extents), self.args, rank, size)
        at = 0
        for span in spans(start, stop, extents):
            length = span.stop - span.start
            source = self.shards[span.shard][name].narrow(axis, span.start, length)
            _copy(source, out.narrow(axis, at, length))
            at += length


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _open(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .pth, mapped. Nothing but tensors and plain containers is unpickled."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    if head.lstrip()[:1] == b"<":
        raise CheckpointFormatError(
            f"{path} is an HTML or XML page of {size} bytes, not weights; download it again"
        )
    if head[:1] == b"\x80":
        raise CheckpointFormatError(
            f"{path} is a bare pickle (torch's format before 1.6, or no checkpoint) and was not run;"
            " load it in torch with weights_only=True and torch.save it again"
        )
    if not zipfile.is_zipfile(path):
        kind = "is empty" if size == 0 else f"is not a complete torch file ({size} bytes; truncated?)"
        raise CheckpointFormatError(f"{path} {kind}; download it again, and compare it with checklist.chk")
    try:
        loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointFormatError(
            f"{path} holds more than tensors and was not run: {str(error).splitlines()[0][:200]}."
            " Only load checkpoints saved as a plain state dict"
        ) from error
    except (RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        raise CheckpointFormatError(
            f"{path} cannot be read ({str(error).splitlines()[0][:200]}); download it again"
        ) from error
    if not isinstance(loaded, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in loaded.items()
    ):
        raise CheckpointFormatError(
            f"{path} holds {type(loaded).__name__}, not a dictionary of named tensors"
        )
    return {name: value for name, value in loaded.items() if name not in IGNORED}


def _copy(source: torch.Tensor, out: torch.Tensor) -> None:
    """Copy window by window, giving mapped pages back: they would count as this rank's memory."""
    row_bytes = source.stride(0) * source.element_size()
    rows = max(1, _WINDOW // max(1, row_bytes))
    for first in range(0, source.shape[0], rows):
        window = source[first : first + rows]
        out[first : first + rows].copy_(window)
        # Up to its last element, not its last row: a slice of columns would reach past the file.
        last = sum((n - 1) * stride for n, stride in zip(window.shape, window.stride(), strict=True))
        _give_back(window.data_ptr(), (last + 1) * source.element_size())


def _give_back(address: int, length: int) -> None:
    """Tell the kernel that a mapped range is no longer needed here (it stays in the page cache)."""
    if not sys.platform.startswith("linux"):
        return
    page = mmap.PAGESIZE
    first = -(-address // page) * page
    whole = (address + length - first) // page * page
    if whole > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(whole), mmap.MADV_DONTNEED)


def load_weights(
    model: Transformer,
    checkpoint: MetaCheckpoint,
    device: torch.device,
    dtype: torch.dtype,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Assign this rank's weights to a model that was made on the meta device.

    Args:
        progress: is told the bytes of each weight as it arrives.
    """
    parallel = model.parallel
    parameters = list(model.named_parameters())
    modules: dict[str, Any] = {name: model.get_submodule(name.rpartition(".")[0]) for name, _ in parameters}
    # What is packed for the CPU is read into one buffer that serves all: plain and packed weights taken
    # and freed in turn leave holes between what stays, up to 0.6 of its size (measured).
    staged = [
        p.numel() for name, p in parameters if device.type == "cpu" and hasattr(modules[name], "multiply")
    ]
    staging = torch.empty(max(staged, default=0), dtype=dtype, device=device)
    for name, parameter in parameters:
        borrowed = device.type == "cpu" and hasattr(modules[name], "multiply")
        if borrowed:
            value = staging[: parameter.numel()].view(parameter.shape)
        else:
            value = torch.empty(parameter.shape, dtype=dtype, device=device)
        checkpoint.copy_slice(name, value, parallel.rank, parallel.size)
        nbytes = value.nbytes
        modules[name].assign(value.clone() if borrowed and not can_prepare(value) else value)
        progress(nbytes)
