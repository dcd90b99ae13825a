"""Laws of quantized folders that do not fit: each is refused with its own error and the numbers, before anything large
is allocated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from damage import refuse
from hf_models import change_config
from quantized_folders import AWQ, GPTQ, INT8_CONFIG, NF4_CONFIG, SCHEMES, save_quantized

from llama.checkpoint import open_checkpoint
from llama.errors import CheckpointFormatError, CheckpointMismatchError, ConfigError

UP = "model.layers.0.mlp.up_proj"  # 192 x 64
DOWN = "model.layers.1.mlp.down_proj"  # 64 x 192
Q = "model.layers.0.self_attn.q_proj"
Tensors = dict[str, torch.Tensor]
BAD: type[Exception] = CheckpointMismatchError


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sound")
    for scheme in ("gptq 4", "gptq 4 act-order", "awq", "nf4 nested", "nf4", "int8"):
        save_quantized(place / scheme, *SCHEMES[scheme])
        open_checkpoint(place / scheme)
    return place


@pytest.fixture
def damaged(originals: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a sound folder with other tensors (None: without it) and config."""

    def damaged(scheme: str, config: dict[str, Any] | None = None, **changes: Any) -> Path:
        folder = Path(shutil.copytree(originals / scheme, tmp_path / "model"))
        if config is not None:
            change_config(folder, quantization_config={**SCHEMES[scheme][0], **config})
        path = folder / "model.safetensors"
        tensors = safetensors.torch.load_file(path)
        for name, value in changes.items():
            tensors.pop(name) if value is None else tensors.update(
                {name: value(tensors[name]) if callable(value) else value}
            )
        safetensors.torch.save_file({name: value.contiguous() for name, value in tensors.items()}, path)
        return folder

    return damaged


@pytest.mark.parametrize(
    ("scheme", "config", "words"),
    [
        ("gptq 4", {"bits": 2}, ["bits is 2", "4 or 8"]),
        ("gptq 4", {"bits": 3}, ["bits is 3", "4 or 8"]),
        ("gptq 4", {"bits": True}, ["bits is True"]),
        ("gptq 4", {"group_size": 48}, ["group_size is 48", "multiples of 32"]),
        ("gptq 4", {"group_size": 0}, ["group_size is 0"]),
        ("gptq 4", {"group_size": "128"}, ["group_size is '128'"]),
        ("gptq 4", {"checkpoint_format": "marlin"}, ["checkpoint_format is 'marlin'", "gptq_v2"]),
        ("gptq 4", {"format": "bitblas"}, ["format is 'bitblas'"]),
        ("gptq 4", {"format": "gptq", "checkpoint_format": "gptq_v2"}, ["format", "differ"]),
        ("gptq 4", {"is_marlin_format": True}, ["is_marlin_format is True"]),
        ("gptq 4", {"pack_dtype": "int8"}, ["pack_dtype is 'int8'"]),
        ("gptq 4", {"desc_act": 1}, ["desc_act is 1"]),
        ("gptq 4", {"dynamic": {"-:.*gate.*": {}, "+:.*down.*": {"bits": 8}}}, ["dynamic", "+:.*down.*"]),
        ("awq", {"bits": 8}, ["bits is 8"]),
        ("awq", {"version": "gemv"}, ["version is 'gemv'", "'gemm'"]),
        ("awq", {"version": "GEMV_FAST"}, ["version is 'gemv_fast'"]),
        ("awq", {"version": "marlin"}, ["version is 'marlin'"]),
        ("awq", {"version": "exllama"}, ["version is 'exllama'"]),
        ("awq", {"zero_point": False}, ["zero_point is False"]),
        ("awq", {"group_size": 16}, ["group_size is 16", "multiples of 32"]),
        ("nf4", {"bnb_4bit_quant_type": "int4"}, ["bnb_4bit_quant_type is 'int4'", "'nf4'"]),
        ("nf4", {"bnb_4bit_quant_storage": "bfloat16"}, ["bnb_4bit_quant_storage is 'bfloat16'"]),
        ("nf4", {"load_in_4bit": False, "load_in_8bit": False}, ["load_in_8bit is False"]),
        *(
            ("gptq 4", {"quant_method": method}, ["quant_method", str(method), "gptq, awq, bitsandbytes"])
            for method in ("compressed-tensors", "hqq", "fp8", "aqlm", "marlin", None, 4)
        ),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_settings_that_are_not_read(
    damaged: Callable[..., Path], scheme: str, config: dict[str, Any], words: list[str]
) -> None:
    refuse(damaged(scheme, config), ConfigError, "config.json", "quantization_config", *words)


def test_settings_that_are_no_object(damaged: Callable[..., Path]) -> None:
    folder = damaged("gptq 4")
    change_config(folder, quantization_config=["gptq"])
    refuse(folder, ConfigError, "config.json", "quantization_config", "['gptq']")


CASES: list[tuple[str, dict[str, Any] | None, dict[str, Any], type[Exception], list[str]]] = [
    # The config is another model's.
    ("gptq 4", {"bits": 8}, {}, BAD, ["qweight of [8, 64]", "[16, 64]"]),
    ("gptq 4", {"group_size": 64}, {}, BAD, ["qzeros of [2, 8]", "[1, 8]"]),
    ("gptq 4", {"group_size": -1}, {}, BAD, ["qzeros of [2, 8]", "[1, 8]"]),
    ("awq", {"group_size": 64}, {}, BAD, ["qzeros of [2, 8]", "[1, 8]"]),
    ("awq", {"group_size": 128}, {}, BAD, ["64 x 64", "128"]),
    ("nf4", {"bnb_4bit_quant_type": "fp4"}, {}, BAD, ["bitsandbytes fp4", "no weight"]),
    # Shapes and dtypes.
    ("gptq 4", None, {f"{UP}.qweight": lambda x: x[:-1]}, BAD, [UP, "[7, 192]", "[8, 192]"]),
    ("gptq 4", None, {f"{UP}.qweight": lambda x: x.long()}, BAD, [UP, "int64", "int32"]),
    (
        "gptq 4",
        None,
        {f"{UP}.qzeros": lambda x: x.view(torch.float32)},
        BAD,
        [UP, "qzeros", "float32", "int32"],
    ),
    ("gptq 4", None, {f"{UP}.scales": lambda x: x.float()}, BAD, [UP, "scales", "float32", "float16"]),
    ("gptq 4", None, {f"{UP}.scales": lambda x: x.bfloat16()}, BAD, [UP, "scales", "bfloat16", "float16"]),
    ("gptq 4", None, {f"{UP}.qzeros": None}, BAD, [UP, "192 x 64", "no qzeros"]),
    ("gptq 4", None, {f"{UP}.scales": None}, BAD, [UP, "no scales"]),
    ("gptq 4", None, {f"{UP}.qweight": None}, BAD, [f"lacks {UP}.weight", "qzeros"]),
    ("awq", None, {f"{UP}.scales": None}, BAD, [UP, "no scales"]),
    ("awq", None, {f"{DOWN}.qweight": lambda x: x.view(64, 24)}, BAD, [DOWN, "[64, 24]", "GEMV", "[192, 8]"]),
    ("awq", None, {f"{DOWN}.qweight": lambda x: x.view(96, 16)}, BAD, [DOWN, "[96, 16]", "[192, 8]"]),
    ("awq", None, {f"{DOWN}.qweight": lambda x: x.view(torch.float32)}, BAD, [DOWN, "float32", "int32"]),
    ("nf4", None, {f"{UP}.weight": lambda x: x.view(192, 32)}, BAD, [UP, "[192, 32]", "[6144, 1]"]),
    ("nf4", None, {f"{UP}.weight.absmax": lambda x: x[:-1]}, BAD, [UP, "absmax", "[95]", "[96]"]),
    ("nf4", None, {f"{UP}.weight.quant_map": None}, BAD, [UP, "no weight.quant_map"]),
    ("nf4 nested", None, {f"{UP}.weight.nested_absmax": None}, BAD, [UP, "absmax", "uint8", "float32"]),
    ("nf4 nested", None, {f"{UP}.weight.nested_quant_map": lambda x: x[:-1]}, BAD, [UP, "[255]", "[256]"]),
    ("int8", None, {f"{UP}.SCB": lambda x: x[:-1]}, BAD, [UP, "SCB", "[191]", "[192]"]),
    ("int8", None, {f"{UP}.weight": lambda x: x.half()}, BAD, [UP, "float16", "int8"]),
    ("int8", None, {f"{UP}.weight_format": torch.tensor(2, dtype=torch.uint8)}, BAD, [UP, "weight_format 2"]),
    # Act-order.
    ("gptq 4 act-order", None, {f"{UP}.g_idx": None}, BAD, [UP, "no g_idx", "desc_act"]),
    ("gptq 4 act-order", {"desc_act": False}, {}, BAD, ["g_idx out of order", "desc_act false"]),
    ("gptq 4 act-order", None, {f"{UP}.g_idx": lambda x: x + 1}, BAD, [UP, "from 1 to 2", "2 groups"]),
    ("gptq 4 act-order", None, {f"{UP}.g_idx": lambda x: x - 1}, BAD, [UP, "from -1 to 0"]),
    ("gptq 4 act-order", None, {f"{UP}.g_idx": lambda x: x * 0}, BAD, [UP, "64 inputs of one group", "32"]),
    ("gptq 4 act-order", None, {f"{UP}.g_idx": lambda x: x[:-1]}, BAD, [UP, "[63]", "[64]"]),
    ("gptq 4 act-order", None, {f"{UP}.g_idx": lambda x: x.long()}, BAD, [UP, "g_idx", "int64"]),
    # Beside what belongs there.
    ("gptq 4", None, {f"{UP}.weight": torch.zeros(192, 64).half()}, BAD, [f"{UP}.weight", f"{UP}.qweight"]),
    ("gptq 4", None, {f"{UP}.bias": torch.full((192,), 0.5).half()}, BAD, [UP, "bias", "0.5"]),
    ("gptq 4", None, {f"{UP}.SCB": torch.zeros(192)}, BAD, [f"does not know: {UP}.SCB"]),
    ("gptq 4", None, {"model.norm.weight": lambda x: x.int()}, BAD, ["model.norm.weight", "int32"]),
    # Values.
    (
        "gptq 4",
        None,
        {f"{UP}.scales": lambda x: x.index_fill(1, torch.tensor([3, 4]), torch.inf)},
        CheckpointFormatError,
        [f"{UP}.scales", "4 of 384", "NaN or infinite"],
    ),
    ("awq", None, {f"{UP}.scales": lambda x: x * torch.nan}, CheckpointFormatError, ["384 of 384"]),
    ("nf4", None, {f"{UP}.weight.absmax": lambda x: x * torch.inf}, CheckpointFormatError, ["96 of 96"]),
    ("nf4", None, {f"{UP}.weight.quant_map": lambda x: x * torch.nan}, CheckpointFormatError, ["16 of 16"]),
    (
        "nf4 nested",
        None,
        {f"{UP}.weight.nested_absmax": lambda x: x * torch.nan},
        CheckpointFormatError,
        ["1 of 1"],
    ),
    ("int8", None, {f"{UP}.SCB": lambda x: x * torch.nan}, CheckpointFormatError, ["192 of 192"]),
]


@pytest.mark.parametrize(
    ("scheme", "config", "changes", "kind", "words"),
    CASES,
    ids=[
        f"{scheme}-{config or ''}{'-'.join(changes)}-{i}"
        for i, (scheme, config, changes, *_) in enumerate(CASES)
    ],
)
def test_tensors_that_do_not_fit(
    damaged: Callable[..., Path],
    scheme: str,
    config: dict[str, Any] | None,
    changes: dict[str, Any],
    kind: Any,
    words: list[str],
) -> None:
    refuse(damaged(scheme, config, **changes), kind, *words)


def quant_state(**changes: Any) -> torch.Tensor:
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [192, 64]}
    state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.3}
    return torch.frombuffer(bytearray(json.dumps(state | changes).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (quant_state(quant_type="fp4"), ["'fp4'", "nf4"]),
        (quant_state(shape=[64, 192]), ["[64, 192]", "[192, 64]"]),
        (quant_state(blocksize=0), ["blocksize 0", "multiples of 32"]),
        (quant_state(blocksize=48), ["blocksize 48"]),
        (quant_state(blocksize=True), ["blocksize True"]),
        (quant_state(blocksize=1 << 40), ["blocksize 1099511627776"]),
        (quant_state(nested_blocksize=-256), ["nested_blocksize -256"]),
        (quant_state(nested_offset="0.3"), ["nested_offset '0.3'"]),
        (quant_state(nested_offset=float("nan")), ["nested_offset nan"]),
        (torch.tensor([1, 2, 3], dtype=torch.uint8), ["quant_state", "not JSON"]),
        (torch.zeros(100_000, dtype=torch.uint8), ["quant_state", "[100000]"]),
        (torch.zeros(20), ["quant_state", "float32"]),
    ],
    ids=range(12),
)
def test_a_quant_state_that_does_not_fit(
    damaged: Callable[..., Path], state: torch.Tensor, words: list[str]
) -> None:
    folder = damaged("nf4 nested", **{f"{UP}.weight.quant_state.bitsandbytes__nf4": state})
    refuse(folder, CheckpointMismatchError, UP, *words)


@pytest.mark.parametrize("scheme", ["gptq 4", "awq", "nf4", "int8"])
def test_quantized_weights_without_a_config(damaged: Callable[..., Path], scheme: str) -> None:
    folder = damaged(scheme)
    change_config(folder, "quantization_config")
    words = ["quantized weights", "quantization_config", "quantize_config.json", "quant_config.json"]
    refuse(folder, CheckpointMismatchError, *words)


@pytest.mark.parametrize("config", [GPTQ, AWQ, NF4_CONFIG, INT8_CONFIG], ids=["gptq", "awq", "nf4", "int8"])
def test_a_config_without_quantized_weights(tmp_path: Path, config: dict[str, Any]) -> None:
    save_quantized(
        tmp_path / "model",
        config,
        lambda outputs, inputs, _: ({"weight": torch.zeros(outputs, inputs)}, torch.zeros(outputs, inputs)),
    )
    refuse(tmp_path / "model", CheckpointMismatchError, "no weight in it is quantized")


@pytest.mark.parametrize(("told", "stored"), [("gptq", "gptq_v2"), ("gptq_v2", "gptq")])
def test_symmetric_zeros_that_are_off_by_one(damaged: Callable[..., Path], told: str, stored: str) -> None:
    """Some programs wrote the one format and named the other."""
    seven, eight = 0x77777777, 0x88888888 - (1 << 32)
    zeros = torch.full((2, 24), seven if stored == "gptq" else eight, dtype=torch.int32)
    config = {"sym": True, "checkpoint_format": told}
    folder = damaged("gptq 4", config, **{f"{UP}.qzeros": zeros})
    refuse(folder, CheckpointMismatchError, UP, "8", told, f"set it to {stored}")
