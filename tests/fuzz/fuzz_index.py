"""The index of a Hugging Face folder and its file names: numbers, links, pipes, control characters."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

from mutations import damaged_json, odd
from target import Target
from tiny_folders import INDEX, hugging_face

from llama.checkpoint import open_checkpoint

_NAMES = (
    *(
        "model-00001-of-500000000.safetensors",
        "model-00001-of-00002.safetensors",
        "model-00003-of-00002.safetensors",
    ),
    *(
        "model-00000-of-00001.safetensors",
        "model.safetensors",
        "consolidated.safetensors",
        "x.safetensors",
        INDEX,
    ),
    *(
        f"model-{'9' * 200}-of-{'9' * 20}.safetensors",
        "pytorch_model-00001-of-99999999999.bin",
        "pytorch_model.bin",
    ),
    *("\x1b[31m\n.safetensors", "\udcff.safetensors", "é☺.safetensors", "consolidated.00.pth", "params.json"),
    *("consolidated.99.pth", "config.json", "tokenizer.model", ".", "..", "a" * 250 + ".bin"),
)


class _Index:
    name = "index"

    def __init__(self) -> None:
        self._index: dict[str, Any] = {}

    def prepare(self, folder: Path) -> None:
        self._index = hugging_face(folder / "sound", 2)

    def mutate(self, rng: random.Random, folder: Path) -> Path:
        case = folder / "case"
        shutil.rmtree(case, ignore_errors=True)
        case.mkdir()
        for path in (folder / "sound").iterdir():
            os.link(path, case / path.name)
        if rng.random() < 0.7:
            (case / INDEX).unlink()
            if rng.random() < 0.8:
                self._write_index(rng, case / INDEX)
        if rng.random() < 0.6:
            for _ in range(rng.randint(1, 3)):
                self._disturb(rng, case)
        return case

    def _write_index(self, rng: random.Random, path: Path) -> None:
        where = dict(self._index["weight_map"])
        if rng.random() < 0.5:
            name = rng.choice((*_NAMES, "a\0b", "sub/x.safetensors", "..\\x", "\ud800", odd(rng)))
            where[rng.choice(list(where))] = name
            path.write_text(json.dumps({"weight_map": where}))
        else:
            path.write_bytes(damaged_json(rng, self._index, ("weight_map", "metadata")))

    def _disturb(self, rng: random.Random, case: Path) -> None:
        """Move a file to another name, or put something else in its place."""
        names = sorted(os.listdir(case))
        if not names:
            return
        path = case / rng.choice(names)
        kind = rng.randrange(8)
        with contextlib.suppress(OSError):  # "..", a folder in the way
            if kind < 4:
                os.rename(path, case / rng.choice(_NAMES))
                return
            path.unlink()
            if kind == 4:
                os.symlink(
                    rng.choice((path.name, "nowhere", "x" * 300, "/dev/zero", "/", "config.json")), path
                )
            elif kind == 5:
                os.mkfifo(path)
            elif kind == 6:
                path.mkdir()

    def read(self, path: Path) -> str:
        checkpoint = open_checkpoint(path)
        assert all(file.resolve().parent == path.resolve() for file in checkpoint.files)
        return "accepted"


TARGET: Target = _Index()
