"""safetensors files, compared with the package of that name: it reads the same tensors from what is accepted here,
and what it reads, with a dtype known here, is accepted.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from mutations import damaged, damaged_json
from target import Target

from llama.checkpoint.weight_files.safetensors import open_safetensors
from llama.errors import LlamaError

# Refused on purpose, though the package reads it: another dtype, a key twice (it takes the last), more
# dimensions or elements than torch can hold, a list in place of an entry's object.
_STRICTER = ("which this runtime does not read", "occurs twice", ", which no tensor has", "lacks dtype")


def _theirs(path: Path) -> dict[str, torch.Tensor] | str:
    """What the package reads, or why it does not."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in list(file.keys())}
    except Exception as error:
        return str(error)


def _raw(x: torch.Tensor) -> bytes:
    return bytes(x.contiguous().reshape(-1).view(torch.uint8).numpy())


class _Safetensors:
    name = "safetensors"

    def __init__(self) -> None:
        self._sound: list[tuple[dict[str, Any], bytes]] = []

    def prepare(self, folder: Path) -> None:
        dtypes = [
            torch.bfloat16,
            torch.float16,
            torch.float32,
            torch.float64,
            torch.int64,
            torch.int8,
            torch.bool,
        ]
        mixed = {f"t{i}": torch.arange(6).reshape(2, 3).to(dtype) for i, dtype in enumerate(dtypes)}
        few = {
            "a": torch.ones(3),
            "empty": torch.ones(0, 4),
            "scalar": torch.tensor(1.5),
            "b.weight": torch.ones(2, 2),
        }
        for tensors, told in ((mixed, None), (few, {"format": "pt"}), ({}, None)):
            raw = safetensors.torch.save(tensors, told)
            length = int.from_bytes(raw[:8], "little")
            self._sound.append((json.loads(raw[8 : 8 + length]), raw[8 + length :]))

    def mutate(self, rng: random.Random, folder: Path) -> Path:
        content, data = rng.choice(self._sound)
        header = json.dumps(content).encode()
        if rng.random() < 0.6:
            header = damaged_json(rng, content, ("__metadata__", "u", "t0"))
        if rng.random() < 0.3:
            # Up to lengths whose bytes look like text: 15,392, and 60 mod 256.
            room = rng.choice((rng.randrange(300), max(0, 15_392 - len(header))))
            header += b" " * room
        raw = len(header).to_bytes(8, "little") + header + data
        if rng.random() < 0.4:
            raw = damaged(rng, raw, rng.choice((8, 8 + len(header), None)))
        path = folder / "x.safetensors"
        path.write_bytes(raw)
        return path

    def read(self, path: Path) -> str:
        theirs = _theirs(path)
        try:
            ours = open_safetensors(path)
        except LlamaError as error:
            if isinstance(theirs, str) or any(why in str(error) for why in _STRICTER):
                return "refused"
            raise AssertionError("refused, but the package reads it") from error
        if isinstance(theirs, str):
            assert "recursion limit" in theirs, f"accepted, but the package says: {theirs}"
            return "accepted"
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            other = theirs[name]
            assert (tensor.shape, tensor.dtype) == (other.shape, other.dtype)
            assert _raw(tensor) == _raw(other)
        return "accepted"


TARGET: Target = _Safetensors()
