"""GGUF files of random or given weights, and their quantization by llama.cpp (`pip install -e ".[bench]"`).

Matrices are written in their own dtype, norms in float32, with the gguf package. GGUF keeps the rotary rows of this
architecture in Meta's order, so nothing is permuted. The vocabulary is a dummy, because prompts are ids.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llama.model import ModelArgs

_NAMES = {
    "attention.wq": "attn_q",
    "attention.wk": "attn_k",
    "attention.wv": "attn_v",
    "attention.wo": "attn_output",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down",
    "feed_forward.w3": "ffn_up",
    "attention_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
}
_WHOLE = {"tok_embeddings": "token_embd", "norm": "output_norm", "output": "output"}


def export(args: ModelArgs, weights: Iterable[tuple[str, torch.Tensor]], path: Path) -> None:
    """Write weights, by Meta's names and in any order, as GGUF."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(16384)
    writer.add_embedding_length(args.dim)
    writer.add_block_count(args.n_layers)
    writer.add_feed_forward_length(args.ffn_dim)
    writer.add_head_count(args.n_heads)
    writer.add_head_count_kv(args.kv_heads)
    writer.add_rope_freq_base(args.rope_theta)
    writer.add_rope_dimension_count(args.head_dim)
    writer.add_layer_norm_rms_eps(args.norm_eps)
    writer.add_vocab_size(args.vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{i}>".encode() for i in range(args.vocab_size)])
    writer.add_token_scores([0.0] * args.vocab_size)
    writer.add_token_types([gguf.TokenType.NORMAL] * args.vocab_size)
    for name, value in weights:
        part = name.removesuffix(".weight").split(".")
        mine = f"blk.{part[1]}.{_NAMES['.'.join(part[2:])]}" if part[0] == "layers" else _WHOLE[part[0]]
        if value.dim() == 1:
            writer.add_tensor(f"{mine}.weight", value.float().numpy())
        elif value.dtype == torch.bfloat16:
            raw: Any = value.contiguous().view(torch.uint16).numpy()
            writer.add_tensor(f"{mine}.weight", raw.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(f"{mine}.weight", value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# llama_ftype of llama.h.
TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q5_K_M": 17, "Q6_K": 18, "Q4_K_M": 15}


@cache
def library() -> Any:
    """llama-cpp-python, silenced."""
    import llama_cpp as lc

    quiet = lc.llama_log_callback(lambda *_: None)
    lc.kept_by_gguf_export = quiet  # a callback must outlive its use
    lc.llama_log_set(quiet, ctypes.c_void_p(0))
    lc.llama_backend_init()
    return lc


def without_mapping(parameters: Any) -> None:
    """Let llama.cpp read a model's file into memory of its own. The field's name depends on the version, and ctypes
    takes any other name without a word."""
    if any(name == "load_mode" for name, *_ in parameters._fields_):
        parameters.load_mode = 0  # LLAMA_LOAD_MODE_NONE
    else:
        assert any(name == "use_mmap" for name, *_ in parameters._fields_)
        parameters.use_mmap = False


def quantize(source: Path, target: Path, kind: str, threads: int = 2) -> None:
    """llama.cpp's own quantization of a GGUF file, as its llama-quantize does it.

    Args:
        kind: of TYPES. As llama.cpp has it, some matrices of a file get more bits than its name says.
    """
    lc = library()
    options = lc.llama_model_quantize_default_params()
    options.ftype, options.nthread = TYPES[kind], threads
    code = lc.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options))
    if code:
        raise RuntimeError(f"llama.cpp did not quantize {source} to {kind}: {code}")
