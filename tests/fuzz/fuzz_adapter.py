"""adapter_config.json of a LoRA adapter, with patterns that nobody writes. What is accepted is scaled as it says."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from mutations import damaged_json
from target import Target
from tiny_folders import CONFIG, hugging_face

from llama.checkpoint.layouts.hugging_face import hf_name
from llama.checkpoint.lora import with_adapter
from llama.checkpoint.opening import open_checkpoint

_RANK, _DIM = 2, CONFIG["hidden_size"]
_ADAPTER: dict[str, Any] = {
    "peft_type": "LORA",
    "r": _RANK,
    "lora_alpha": 4,
    "target_modules": ["q_proj", "o_proj"],
    "init_lora_weights": True,
    "bias": "none",
    "use_dora": False,
    "exclude_modules": None,
    "layers_to_transform": None,
    "modules_to_save": None,
}
_KEYS = (
    *_ADAPTER,
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "layers_pattern",
    "lora_bias",
    "megatron_config",
)
_PIECES = (
    "q_proj",
    "self_attn",
    "model",
    "layers",
    "0",
    ".",
    r"\.",
    ".*",
    ".+",
    r"\d",
    "[a-z]",
    "(",
    ")",
    "|",
    "+",
    "*",
)
_MORE = ("?", "^", "$", "{1,3}", "(q|o)", "(a|aa)", r"\1", "[^", "]", "--", "é")


class _Adapter:
    name = "adapter"

    def prepare(self, folder: Path) -> None:
        hugging_face(folder / "base", 1)
        prefix = "base_model.model.model.layers.0.self_attn"
        tensors = {}
        for module in ("q_proj", "o_proj"):
            tensors[f"{prefix}.{module}.lora_A.weight"] = torch.ones(_RANK, _DIM)
            tensors[f"{prefix}.{module}.lora_B.weight"] = torch.ones(_DIM, _RANK)
        safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")

    def mutate(self, rng: random.Random, folder: Path) -> Path:
        alphas = {_pattern(rng): rng.choice((1, 3, 8)) for _ in range(rng.choice((0, 1, 1, 3)))}
        ranks = {_pattern(rng): _RANK for _ in range(rng.choice((0, 0, 1)))}
        config = _ADAPTER | {"alpha_pattern": alphas, "rank_pattern": ranks, "use_rslora": rng.random() < 0.3}
        damage = rng.random() < 0.6
        text = damaged_json(rng, config, _KEYS) if damage else json.dumps(config).encode()
        (folder / "adapter_config.json").write_bytes(text)
        return folder

    def read(self, path: Path) -> str:
        found = with_adapter(open_checkpoint(path / "base"), path).adapter.changes
        told = json.loads((path / "adapter_config.json").read_bytes())
        for name, change in found.items():
            module = hf_name(name).removesuffix(".weight")
            alpha = _first(told.get("alpha_pattern"), module, told["lora_alpha"])
            divisor = _RANK**0.5 if told.get("use_rslora") else _RANK
            assert change.update is not None
            assert change.update.scaling == alpha / divisor
            assert _first(told.get("rank_pattern"), module, told["r"]) == _RANK
        assert len(found) == 2
        return "accepted"


def _pattern(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(
            ("q_proj", r".*\.q_proj", "model.layers.0.self_attn.o_proj", r"layers\.\d\..*", "(q|o)_proj")
        )
    return "".join(rng.choice(_PIECES + _MORE) for _ in range(rng.randrange(12)))


def _first(patterns: dict[str, Any] | None, module: str, otherwise: Any) -> Any:
    """As PEFT looks it up."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise


TARGET: Target = _Adapter()
