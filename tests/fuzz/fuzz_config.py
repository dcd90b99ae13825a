"""config.json of a Hugging Face folder. What is accepted has the shapes that plain JSON says."""

from __future__ import annotations

import json
import random
from pathlib import Path

from mutations import damaged_json
from target import Target
from tiny_folders import CONFIG, hugging_face

from llama.checkpoint import open_checkpoint
from llama.checkpoint.info import describe

_KEYS = (
    *CONFIG,
    *(
        "rope_parameters",
        "mlp_bias",
        "sliding_window",
        "quantization_config",
        "partial_rotary_factor",
        "layer_types",
    ),
)
# Where rope_theta and its company may stand, so that what is inside is damaged too.
_ROPE = (
    {"rope_scaling": {"type": "default", "rope_theta": 1e6}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 1.0}},
    {},
)


class _Config:
    name = "config"

    def prepare(self, folder: Path) -> None:
        hugging_face(folder, 1)

    def mutate(self, rng: random.Random, folder: Path) -> Path:
        (folder / "config.json").write_bytes(damaged_json(rng, CONFIG | rng.choice(_ROPE), _KEYS))
        return folder

    def read(self, path: Path) -> str:
        args = (checkpoint := open_checkpoint(path)).args
        told = json.loads((path / "config.json").read_bytes())
        found = (args.dim, args.ffn_dim, args.n_layers, args.n_heads)
        keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        assert found == tuple(told[key] for key in keys)
        for key in ("rope_scaling", "rope_parameters"):
            assert float((told.get(key) or {}).get("rope_theta", args.rope_theta)) == args.rope_theta
        assert float(told.get("rope_theta", args.rope_theta)) == args.rope_theta
        assert all(label and text for label, text in describe(checkpoint, None))
        return "accepted"


TARGET: Target = _Config()
