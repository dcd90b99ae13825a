"""What doors tell of the weights: Ollama's format and quantization level, and the fingerprint of the numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from gguf_files import BLOCKED, save_gguf
from http_service import serving
from tiny_models import ffn_dim, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama import Llama
from llama.checkpoint import open_checkpoint
from llama.checkpoint.convert import convert
from llama.serving.http.service import fingerprint

SMALL = {**BLOCKED, "n_layers": 1}
KINDS = ("Q8_0", "Q5_K", "F16")
WEIGHTS = random_weights(SMALL, tiny_tokenizer().n_words)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model in each form, and two adapters for it."""
    base = tmp_path_factory.mktemp("served")
    meta = save_checkpoint(base / "meta", SMALL, WEIGHTS, tiny_model_path(), 1)
    convert(open_checkpoint(meta), base / "hf", layout="hf")
    return {
        **{"meta": meta, "hf": base / "hf"},
        **{kind: save_gguf(base / f"{kind}.gguf", SMALL, WEIGHTS, tiny_tokenizer(), kind) for kind in KINDS},
        **{f"adapter {i}": adapter(base / f"adapter {i}", i) for i in (0, 1)},
    }


def adapter(folder: Path, seed: int) -> Path:
    """Of one matrix, in PEFT's files."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(seed)
    sizes = {"A": (2, ffn_dim(SMALL)), "B": (SMALL["dim"], 2)}
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_{}.weight"
    halves = {name.format(half): torch.randn(size, generator=generator) for half, size in sizes.items()}
    safetensors.torch.save_file(halves, folder / "adapter_model.safetensors")
    return folder


def built(folder: Path, **options: Any) -> Llama:
    return Llama.build(folder, None, 64, 2, **{"device": "cpu", "dtype": "float32", **options})


def identity(folder: Path, **options: Any) -> str:
    with built(folder, **options) as llama:
        return fingerprint(llama)


@pytest.mark.parametrize(
    ("place", "options", "expected"),
    [
        ("meta", {}, ("pytorch", "F32")),
        ("meta", {"quantize": "int8"}, ("pytorch", "Q8_0")),
        ("hf", {}, ("safetensors", "F32")),
        ("Q8_0", {}, ("gguf", "Q8_0")),
        ("Q5_K", {}, ("gguf", "Q5_K")),  # though its matrices are int8 in memory
        ("Q5_K", {"adapter": "adapter 0"}, ("gguf", "Q8_0")),
        ("F16", {}, ("gguf", "F32")),
        ("F16", {"quantize": "int8"}, ("gguf", "Q8_0")),
    ],
)
def test_ollamas_clients_are_told_what_the_files_are(
    places: dict[str, Path], place: str, options: dict[str, Any], expected: tuple[str, str]
) -> None:
    options = {key: places.get(value, value) for key, value in options.items()}
    with built(places[place], **options) as llama, serving(llama) as served:
        details = served.post("/api/show", {"model": "x"}).json()["details"]
        answer = served.post("/v1/completions", {"prompt": "x", "max_tokens": 1}).json()
        assert answer["system_fingerprint"] == fingerprint(llama)
    assert (details["format"], details["quantization_level"]) == expected


def test_fingerprints_differ_where_the_numbers_do(places: dict[str, Path]) -> None:
    """And only there: the same weights in another file, or the same adapter in another folder, change nothing."""
    plain = identity(places["meta"])
    assert identity(places["hf"]) == identity(places["F16"]) == plain
    copied = shutil.copytree(places["adapter 0"], places["adapter 0"].with_name("copied"))
    merged = identity(places["meta"], adapter=places["adapter 0"])
    assert identity(places["hf"], adapter=copied) == merged
    all_of_them = [
        plain,
        merged,
        identity(places["meta"], adapter=places["adapter 1"]),
        identity(places["meta"], dtype="bfloat16"),
        identity(places["meta"], cache_dtype="int8"),
        identity(places["meta"], quantize="int8"),
        identity(places["meta"], quantize="int4"),
        identity(places["Q8_0"]),
        identity(places["Q5_K"]),
        identity(places["Q5_K"], cache_dtype="int8"),
    ]
    assert len(set(all_of_them)) == len(all_of_them)
