"""Hugging Face folders with GPTQ, AWQ and bitsandbytes weights, packed number by number from the formats' descriptions.

Each packer draws the numbers, and returns a module's tensors by the endings of their names, and the weight
(out, in) that they mean, in float32.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

Packed = tuple[dict[str, torch.Tensor], torch.Tensor]
Packer = Callable[[int, int, int], Packed]  # outputs, inputs, seed

# The 16 values of nf4: quantiles of the normal distribution (QLoRA, appendix E).
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


def words_of(codes: np.ndarray[Any, Any], bits: int, order: list[int]) -> torch.Tensor:
    """(n, m) codes -> (n / k, m) int32; word j holds rows jk + order[0], jk + order[1], ... from its lowest bits on."""
    per = 32 // bits
    found = np.zeros((len(codes) // per, codes.shape[1]), dtype=np.uint32)
    for j in range(len(found)):
        for i in range(per):
            found[j] |= codes[j * per + order[i]].astype(np.uint32) << np.uint32(bits * i)
    return torch.from_numpy(found.view(np.int32).copy())


def gptq(
    *,
    bits: int = 4,
    group: int = 32,
    act_order: bool = False,
    v2: bool = False,
    spread: int = 2,
    g_idx: bool = True,
    bias: bool = False,
) -> Packer:
    """GPTQ modules. Zeros lie within `spread` of the middle of the codes, 0 and the largest code included.

    Args:
        v2: zeros are stored as they are; else each minus one, by a subtraction from the whole word.
        g_idx, bias: store these tensors, as AutoGPTQ did for every module.
    """

    def pack(outputs: int, inputs: int, seed: int) -> Packed:
        draw = np.random.default_rng(seed)
        top, size = 1 << bits, inputs if group == -1 else group
        groups = -(-inputs // size)
        codes = draw.integers(0, top, (inputs, outputs))
        zeros = draw.integers(
            max(0, top // 2 - spread), min(top - 1, top // 2 + spread) + 1, (groups, outputs)
        )
        scales = (draw.uniform(0.3, 0.6, (groups, outputs)) / top).astype(np.float16)
        of = np.arange(inputs) // size
        if act_order:
            draw.shuffle(of)
        weight = np.empty((outputs, inputs), dtype=np.float32)
        for i in range(inputs):
            weight[:, i] = scales[of[i]].astype(np.float32) * (codes[i] - zeros[of[i]])
        natural = list(range(32 // bits))
        qzeros = words_of(zeros.T, bits, natural).numpy().T.astype(np.int64)
        if not v2:
            qzeros = qzeros - sum(1 << (bits * i) for i in natural)  # modulo 2**32, so with borrows
        tensors = {
            "qweight": words_of(codes, bits, natural),
            "qzeros": torch.from_numpy((qzeros & 0xFFFFFFFF).astype(np.uint32).view(np.int32)).contiguous(),
            "scales": torch.from_numpy(scales),
        }
        if g_idx:
            tensors["g_idx"] = torch.from_numpy(of.astype(np.int32))
        if bias:
            tensors["bias"] = torch.zeros(outputs, dtype=torch.float16)
        return tensors, torch.from_numpy(weight)

    return pack


def awq(*, group: int = 32, spread: int = 2) -> Packer:
    """AWQ modules in the order of the GEMM version."""

    def pack(outputs: int, inputs: int, seed: int) -> Packed:
        draw = np.random.default_rng(seed)
        groups = inputs // group
        codes = draw.integers(0, 16, (inputs, outputs))
        zeros = draw.integers(max(0, 8 - spread), min(15, 8 + spread) + 1, (groups, outputs))
        scales = (draw.uniform(0.3, 0.6, (groups, outputs)) / 16).astype(np.float16)
        weight = np.empty((outputs, inputs), dtype=np.float32)
        for i in range(inputs):
            weight[:, i] = scales[i // group].astype(np.float32) * (codes[i] - zeros[i // group])
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        return {
            "qweight": words_of(codes.T, 4, order).t().contiguous(),
            "qzeros": words_of(zeros.T, 4, order).t().contiguous(),
            "scales": torch.from_numpy(scales),
        }, torch.from_numpy(weight)

    return pack


def four_bit(*, kind: str = "nf4", blocksize: int = 64, nested: bool = True) -> Packer:
    """bitsandbytes modules in 4 bit, with or without double quantization."""

    def pack(outputs: int, inputs: int, seed: int) -> Packed:
        draw = np.random.default_rng(seed)
        size = outputs * inputs
        codes = draw.integers(0, 16, size)
        values = np.array(NF4 if kind == "nf4" else draw.permutation(NF4), dtype=np.float32)
        blocks = -(-size // blocksize)
        state: dict[str, Any] = {"quant_type": kind, "blocksize": blocksize, "dtype": "float16"}
        state["shape"] = [outputs, inputs]
        packed = bytes(int(codes[i] << 4 | codes[i + 1]) for i in range(0, size, 2))
        tensors = {
            "weight": torch.frombuffer(bytearray(packed), dtype=torch.uint8).view(-1, 1),
            "weight.quant_map": torch.from_numpy(values),
        }
        if nested:
            inner = draw.integers(0, 256, blocks)
            table = np.sort(draw.uniform(-1, 1, 256)).astype(np.float32)
            outer = draw.uniform(0.1, 0.2, -(-blocks // 256)).astype(np.float32)
            offset = 0.3
            absmax = np.array([table[inner[b]] * outer[b // 256] + np.float32(offset) for b in range(blocks)])
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
            tensors["weight.absmax"] = torch.from_numpy(inner.astype(np.uint8))
            tensors["weight.nested_absmax"] = torch.from_numpy(outer)
            tensors["weight.nested_quant_map"] = torch.from_numpy(table)
        else:
            absmax = draw.uniform(0.1, 0.5, blocks).astype(np.float32)
            tensors["weight.absmax"] = torch.from_numpy(absmax)
        text = bytearray(json.dumps(state).encode())
        tensors[f"weight.quant_state.bitsandbytes__{kind}"] = torch.frombuffer(text, dtype=torch.uint8)
        weight = np.array([values[codes[i]] * absmax[i // blocksize] for i in range(size)], dtype=np.float32)
        return tensors, torch.from_numpy(weight).view(outputs, inputs)

    return pack


def llm_int8() -> Packer:
    """bitsandbytes modules of LLM.int8: a scale for each row."""

    def pack(outputs: int, inputs: int, seed: int) -> Packed:
        draw = np.random.default_rng(seed)
        codes = draw.integers(-127, 128, (outputs, inputs)).astype(np.int8)
        largest = draw.uniform(0.2, 0.5, outputs).astype(np.float32)
        weight = codes.astype(np.float32) * (largest / np.float32(127))[:, None]
        tensors = {
            "weight": torch.from_numpy(codes),
            "SCB": torch.from_numpy(largest),
            "weight_format": torch.tensor(0, dtype=torch.uint8),
        }
        return tensors, torch.from_numpy(weight)

    return pack


GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
AWQ: dict[str, Any] = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": 32,
    "zero_point": True,
    "version": "gemm",
    "modules_to_not_convert": None,
}
NF4_CONFIG: dict[str, Any] = {
    "quant_method": "bitsandbytes",
    "load_in_4bit": True,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
    "llm_int8_threshold": 6.0,
}
INT8_CONFIG: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True}
# Name -> the config, and what packs a module like that.
SCHEMES: dict[str, tuple[dict[str, Any], Packer]] = {
    "gptq 4": (GPTQ, gptq(bias=True)),
    "gptq 4, 64": ({**GPTQ, "group_size": 64}, gptq(group=64, spread=8)),
    "gptq 4, 128": ({**GPTQ, "group_size": 128}, gptq(group=128, spread=8, g_idx=False)),
    "gptq 8, row": ({**GPTQ, "bits": 8, "group_size": -1}, gptq(bits=8, group=-1, spread=128)),
    "gptq 8 v2": ({**GPTQ, "bits": 8, "checkpoint_format": "gptq_v2"}, gptq(bits=8, v2=True, spread=128)),
    "gptq 4 act-order": ({**GPTQ, "desc_act": True}, gptq(act_order=True, spread=8)),
    "gptq 4 act-order, 64": ({**GPTQ, "desc_act": True, "group_size": 64}, gptq(act_order=True, group=64)),
    "gptq 8 act-order v2": (
        {**GPTQ, "bits": 8, "desc_act": True, "checkpoint_format": "gptq_v2"},
        gptq(bits=8, act_order=True, v2=True),
    ),
    "awq": (AWQ, awq(spread=8)),
    "awq 64": ({**AWQ, "group_size": 64}, awq(group=64)),
    "nf4 nested": (NF4_CONFIG, four_bit()),
    "nf4": ({**NF4_CONFIG, "bnb_4bit_use_double_quant": False}, four_bit(nested=False, blocksize=128)),
    "fp4": ({**NF4_CONFIG, "bnb_4bit_quant_type": "fp4"}, four_bit(kind="fp4")),
    "int8": (INT8_CONFIG, llm_int8()),
}


def random_state(dtype: torch.dtype, vocab: int) -> tuple[Any, dict[str, torch.Tensor]]:
    """A transformers config whose matrices have whole blocks, and random plain weights of its model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        rope_theta=1e6,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    generator = torch.Generator().manual_seed(5)
    state = {}
    for name, value in LlamaForCausalLM(config).state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        state[name] = (1 + 0.1 * noise if value.dim() == 1 else noise * 0.3).to(dtype)
    return config, state


def save_quantized(
    folder: Path,
    settings: dict[str, Any] | None,
    pack: Packer,
    *,
    head: bool = False,
    dtype: torch.dtype = torch.float16,
    bins: bool = False,
    left: str | None = None,
) -> Any:
    """Write a folder whose linear modules are quantized -> transformers' model with the weights that this means.

    Args:
        head: quantize the output matrix too, which has a few rows more then.
        dtype: of the plain tensors.
        bins: as pytorch_model.bin.
        left: modules of this name stay plain.
    """
    from transformers import LlamaForCausalLM

    # Whole words of outputs, which the tiny tokenizer's 436 pieces are not.
    config, state = random_state(dtype, 440 if head else tiny_tokenizer().n_words)
    stored, meant = dict(state), {name: value.float() for name, value in state.items()}
    for seed, (name, value) in enumerate(state.items()):
        if left is not None and left in name:
            continue
        if name.endswith("_proj.weight") or (head and name == "lm_head.weight"):
            tensors, meant[name] = pack(*value.shape, seed)
            del stored[name]
            stored |= {f"{name.removesuffix('.weight')}.{ending}": each for ending, each in tensors.items()}
    config.save_pretrained(folder)
    path = folder / "config.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told if settings is None else {**told, "quantization_config": settings}))
    if bins:
        torch.save(stored, folder / "pytorch_model.bin")
    else:
        safetensors.torch.save_file(stored, folder / "model.safetensors")
    shutil.copy(tiny_model_path(), folder / "tokenizer.model")
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    model.load_state_dict(meant)
    return model
