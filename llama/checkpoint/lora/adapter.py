"""The tensors of an adapter, checked against its config and against the model that it is for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

from ...errors import CheckpointFormatError, CheckpointMismatchError, CheckpointNotFoundError
from ..files import check_folder, is_there, some
from ..layouts.hugging_face import hf_name
from ..weight_files.mapped import MappedFile, TensorFile
from ..weight_files.pth import open_pth
from ..weight_files.safetensors import open_safetensors
from .config import CONFIG, LoraConfig, read_config

__all__ = ["Adapter", "Change", "LowRank", "open_adapter"]

_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# What follows a module's name -> which of its tensors it is. Embeddings have A and B the other way round.
_KINDS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_embedding_A": "A",
    ".lora_embedding_B": "B",
    ".base_layer.weight": "weight",
    ".weight": "weight",
}
_EMBEDDING, _HEAD = "model.embed_tokens", "lm_head"
# Values that are checked at a time.
_CHECKED = 4 << 20


class LowRank(NamedTuple):
    """An update of a weight: scaling * left @ right, (rows, rank) and (rank, columns). Rows in Hugging Face's order."""

    left: torch.Tensor
    right: torch.Tensor
    scaling: float


class Change(NamedTuple):
    """What an adapter does to a weight: replaces it, then adds to it. Rows are in Hugging Face's order."""

    weight: torch.Tensor | None
    update: LowRank | None


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter whose tensors fit the model.

    Args:
        path: the file of weights.
        tensors: as stored, by their names in the file, and the mapped file.
        changes: by Meta's names of the weights.
    """

    folder: Path
    path: Path
    tensors: TensorFile
    changes: Mapping[str, Change]

    @cached_property
    def digest(self) -> int:
        """62 bits of a hash over everything that decides the merged weights. Reads the file whole."""
        found = hashlib.blake2b(digest_size=8)
        for name, change in sorted(self.changes.items()):
            scaling = None if change.update is None else change.update.scaling
            found.update(f"\n{name} {scaling}".encode())
        for name, tensor in sorted(self.tensors.items()):
            found.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            for part in _pieces(self.tensors.file, tensor):
                found.update(part.contiguous().view(torch.uint8).numpy().tobytes())
        return int.from_bytes(found.digest(), "little") >> 2

    def __str__(self) -> str:
        ranks = sorted(
            {each.update.right.shape[0] for each in self.changes.values() if each.update is not None}
        )
        replaced = sum(each.weight is not None for each in self.changes.values())
        told = [f"LoRA of rank {' to '.join(map(str, sorted({ranks[0], ranks[-1]})))}"] if ranks else []
        told += [f"{replaced} weights replaced"] if replaced else []
        return f"{', '.join(told)}: changes {len(self.changes)} tensors"


def open_adapter(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
    """Open PEFT's folder, and check config, names, shapes and values.

    Args:
        shapes: of the model, by Meta's names.

    Raises:
        CheckpointNotFoundError: there is no such folder, config or file of weights.
        CheckpointFormatError: a file is damaged, or holds NaN or infinity.
        CheckpointMismatchError: the tensors do not fit the config, or the model.
        ConfigError: another kind of adapter than plain LoRA.
    """
    check_folder(folder, "adapter")
    if not is_there(folder / CONFIG):
        raise CheckpointNotFoundError(
            f"{folder} has no {CONFIG}, so it is not an adapter as PEFT saves it; pass the folder that holds that file"
        )
    config = read_config(folder)
    path = next((folder / name for name in _FILES if is_there(folder / name)), None)
    if path is None:
        raise CheckpointNotFoundError(
            f"{folder} has a {CONFIG}, but no {' and no '.join(_FILES)}; download it"
        )
    tensors = open_safetensors(path) if path.suffix == ".safetensors" else open_pth(path)
    names = {hf_name(name).removesuffix(".weight"): name for name in shapes}
    parts, problems = _by_module(tensors, {module: shapes[name] for module, name in names.items()})
    for module, name in names.items():
        problems += _misfits(config, module, shapes[name], parts.get(module, {}))
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointMismatchError(
            f"{path} does not fit its {CONFIG} and the base model: {'; '.join(problems[:5])}{more}. Is it an adapter of"
            " this model, and downloaded whole?"
        )
    _check_values(path, tensors)
    changes = {names[module]: _change(config, module, found) for module, found in parts.items()}
    return Adapter(folder, path, tensors, changes)


def _by_module(
    tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, dict[str, torch.Tensor]], list[str]]:
    """The tensors A, B and weight of each module, and what is wrong with the names and dtypes of others."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    unknown, twice, other = [], [], []
    for key, tensor in tensors.items():
        name = key.removeprefix(_PREFIX)
        ending = next((each for each in _KINDS if name.endswith(each)), "")
        module, kind = name.removesuffix(ending), _KINDS.get(ending, "")
        fits = kind == "weight" or (
            len(shapes.get(module, ())) == 2 and _is_turned(module) == ("embedding" in ending)
        )
        if not kind or not fits or module not in shapes:
            unknown.append(key)
        elif kind in parts.setdefault(module, {}):
            twice.append(key)
        elif tensor.dtype not in _FLOATS:
            other.append(f"{key} is of {tensor.dtype}")
        else:
            parts[module][kind] = tensor
    problems = (
        [f"it has tensors of modules that this model does not have: {some(unknown)}"] if unknown else []
    )
    problems += [f"it holds twice what {some(twice)} is for"] if twice else []
    return parts, problems + other[:3]


def _is_turned(module: str) -> bool:
    """Whether the update of a module is the transposed product of B and A: that of the embedding is."""
    return module == _EMBEDDING


def _misfits(
    config: LoraConfig, module: str, shape: tuple[int, ...], parts: Mapping[str, torch.Tensor]
) -> Iterator[str]:
    """What is wrong with a module's tensors."""
    weight, a, b = (parts.get(kind) for kind in ("weight", "A", "B"))
    if weight is not None and tuple(weight.shape) != shape:
        yield f"the weight of {module} is {list(weight.shape)}, the base model's is {list(shape)}"
    if weight is not None and not config.saves(module) and module not in (_EMBEDDING, _HEAD):
        yield f"it replaces the weight of {module}, which modules_to_save does not name"
    if weight is None and config.saves(module):
        yield f"it lacks the weight of {module}, which modules_to_save names"
    if (a is None) != (b is None):
        yield f"of {module} it has {'A without B' if b is None else 'B without A'}"
    if a is None or b is None:
        if a is b and config.adapts(module) and len(shape) == 2:
            yield f"it lacks A and B of {module}, which target_modules names"
        return
    if config.adapts(module) is False:
        yield f"it updates {module}, which target_modules does not name"
    rank, (rows, columns) = config.rank_of(module), shape[::-1] if _is_turned(module) else shape
    if a.dim() == b.dim() == 2 and a.shape[0] == b.shape[1] != rank:
        yield f"the rank of {module} is {a.shape[0]}, {CONFIG} says {rank}"
    elif tuple(a.shape) != (rank, columns) or tuple(b.shape) != (rows, rank):
        yield (
            f"A and B of {module} are {list(a.shape)} and {list(b.shape)}; the base model needs {[rank, columns]} and"
            f" {[rows, rank]}"
        )


def _change(config: LoraConfig, module: str, parts: Mapping[str, torch.Tensor]) -> Change:
    update = None
    if "A" in parts:
        left, right = (parts["A"].T, parts["B"].T) if _is_turned(module) else (parts["B"], parts["A"])
        update = LowRank(left, right, config.scaling_of(module))
    return Change(parts.get("weight"), update)


def _check_values(path: Path, tensors: TensorFile) -> None:
    """Raise CheckpointFormatError if a value is NaN or infinite."""
    for name, tensor in tensors.items():
        bad = sum(part.numel() - int(part.isfinite().sum()) for part in _pieces(tensors.file, tensor))
        if bad:
            raise CheckpointFormatError(
                f"{path}: {name} has {bad:,} values that are NaN or infinite: the training diverged, or the file is"
                " damaged. Take an earlier state of the adapter, or download it again"
            )


def _pieces(file: MappedFile, tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A mapped tensor in pieces of some MB, while its file is as long as it was."""
    step = max(1, _CHECKED // max(1, tensor[:1].numel()))
    for first in range(0, len(tensor), step):
        file.check()
        yield tensor[first : first + step]
