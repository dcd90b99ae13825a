"""LoRA adapters that PEFT made and merged, of a tiny model in every layout."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from hf_models import in_meta_order
from tiny_models import SHAPE, hugging_face_twin, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

WEIGHTS = random_weights(SHAPE, tiny_tokenizer().n_words)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
PREFIX = "base_model.model.model.layers."


@functools.cache
def base() -> Any:
    """The tiny model in transformers."""
    return hugging_face_twin(SHAPE, WEIGHTS).requires_grad_(False)


def base_folders(place: Path) -> dict[str, Path]:
    """The same model in each layout."""
    found = {
        f"meta {shards}": save_checkpoint(place / f"m{shards}", SHAPE, WEIGHTS, tiny_model_path(), shards)
        for shards in (1, 2)
    }
    base().save_pretrained(place / "hf")
    shutil.copy(tiny_model_path(), place / "hf" / "tokenizer.model")
    return found | {"hf": place / "hf"}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without PEFT's warnings, of embeddings and of releases to come."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def save_adapter(folder: Path, seed: int = 0, model: Any = None, **options: Any) -> Path:
    """An adapter with random values, as PEFT saves it; of `base`, or of another model."""
    import peft

    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"} | options)
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)  # PEFT draws the first values of A
        model = peft.get_peft_model(copy.deepcopy(model or base()), config)
        generator = torch.Generator().manual_seed(seed)
        for value in model.parameters():
            if value.requires_grad:
                value.data += 0.1 * torch.randn(value.shape, generator=generator)
        model.save_pretrained(folder)
    return folder


def merged(folder: Path, model: Any = None) -> dict[str, torch.Tensor]:
    """The base with an adapter, by PEFT's own hand: all weights by Meta's names, in Meta's order."""
    import peft

    with quiet():
        model = peft.PeftModel.from_pretrained(copy.deepcopy(model or base()), folder).merge_and_unload()
    return in_meta_order(model)


def change_config(folder: Path, **changes: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    return found


def replace_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    safetensors.torch.save_file(
        {name: value.contiguous() for name, value in tensors.items()}, folder / "adapter_model.safetensors"
    )
    return folder
