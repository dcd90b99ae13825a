"""params.json of a folder in Meta's layout. What is accepted says of the model what plain JSON says."""

from __future__ import annotations

import json
import random
from pathlib import Path

from mutations import damaged_json
from target import Target
from tiny_folders import PARAMS, meta

from llama.checkpoint import open_checkpoint
from llama.checkpoint.info import describe
from llama.sizing.args import valid_sizes


class _Params:
    name = "params"

    def prepare(self, folder: Path) -> None:
        meta(folder)

    def mutate(self, rng: random.Random, folder: Path) -> Path:
        (folder / "params.json").write_bytes(damaged_json(rng, PARAMS, tuple(PARAMS)))
        return folder

    def read(self, path: Path) -> str:
        checkpoint = open_checkpoint(path)
        told = json.loads((path / "params.json").read_bytes())
        for name, value in told.items():
            if value is not None and value != -1:
                found = getattr(checkpoint.args, name)
                assert found == type(found)(value), name
        assert 1 in valid_sizes(checkpoint.args)
        assert all(label and text for label, text in describe(checkpoint, None))
        return "accepted"


TARGET: Target = _Params()
