"""The compiled kernels of csrc/: loads them, says which tensors each takes, and calls them.

`pip install` compiles them where it finds a C compiler. Nothing depends on it: each caller (linear.py,
attention.py, norms.py, sampling.py, fused.py) also has a way without them.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = [
    "LANES",
    "available",
    "can_pack_block",
    "chunk_attention",
    "decode_attention",
    "draw",
    "kernels",
    "linear",
    "log_probabilities",
    "pack",
    "pack_block",
    "packed_shape",
    "ranks_library",
    "rms_norm",
    "rotate_",
    "takes_chunk",
    "takes_decode",
    "takes_layers",
    "takes_logits",
    "takes_norm",
    "takes_rotation",
    "unpack",
    "why_missing",
]

# As `llama_abi` in csrc/bf16.c. Raise both with every change of a symbol, a signature or a layout.
_ABI = 8
# setup.py writes the compiler's error here.
_NOTE = Path(__file__).with_name("_cpu.failed.txt")
# Floats of a 512-bit vector, and outputs of one group of a packed weight.
LANES = 16
# Largest head that the kernel for many queries takes; DEEP in csrc/attention.h.
_MAX_HEAD_DIM = 256
_TYPES = {
    "p": ctypes.c_void_p,
    "n": ctypes.c_long,
    "u": ctypes.c_uint64,
    "f": ctypes.c_float,
    "i": ctypes.c_int,
}
_RANKS_SIGNATURES = {"bytes": "nn", "enter": "pn", "sum": "pnnnuuuupnni", "gather": "pnnnuuuuppni"}
_ROWS_SIGNATURES = {"space": "n", "draw": "ppppnni", "logs": "ppppnni"}
_BF16_SIGNATURES = {
    "pack": "ppnnnni",
    "linear": "pppnnni",
    "rms_norm": "pppnnfi",
    "rotate": "ppnnni",
    "decode": "pppppppnnnnnnfi",
    "layers": "ppppnn",
    "attend": "ppppnnnnnnfi",
}


# ---- the compiled file ----


@cache
def _loaded() -> ctypes.CDLL | None:
    """The compiled file, or None. Its OpenMP calls resolve to the runtime that torch has loaded."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_cpu" + suffix)
        if not path.is_file():
            continue
        try:
            library = ctypes.CDLL(str(path))
        except OSError:  # built against a torch whose OpenMP has other symbols
            return None
        if not hasattr(library, "llama_abi") or library.llama_abi() != _ABI:
            return None  # built from another version of the source; install again
        for prefix, signatures, result in (
            ("bf16", _BF16_SIGNATURES, None),
            ("rows", _ROWS_SIGNATURES, ctypes.c_long),
            ("ranks", _RANKS_SIGNATURES, ctypes.c_long),
        ):
            for name, signature in signatures.items():
                function = getattr(library, f"llama_{prefix}_{name}")
                function.argtypes = [_TYPES[letter] for letter in signature]
                function.restype = result
        for name in ("sum", "gather"):
            getattr(library, f"llama_ranks_{name}").restype = ctypes.c_int
        for name in ("draw", "logs"):
            getattr(library, f"llama_rows_{name}").restype = None
        return library
    return None


def ranks_library() -> ctypes.CDLL | None:
    """The functions of csrc/ranks.c, which run on any CPU. For distributed/shared_memory.py."""
    return _loaded()


@cache
def kernels() -> ctypes.CDLL | None:
    """The functions of csrc/bf16.c, attention.c and rows.c; None if not built, or not for this CPU."""
    library = _loaded()
    return library if library is not None and library.llama_supported() else None


def available() -> bool:
    """Whether the kernels are there and this CPU runs them."""
    return kernels() is not None


def why_missing() -> str | None:
    """Why this CPU, which could run the kernels, does without; None where it runs them, or cannot."""
    if _loaded() is not None or not _could_run():
        return None
    if any(_NOTE.with_name("_cpu" + suffix).is_file() for suffix in EXTENSION_SUFFIXES):
        return "what was compiled is for another version of the source, or of torch"
    try:
        return _NOTE.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return "nothing was compiled when the package was installed"


def _could_run() -> bool:
    """Whether Linux says that this CPU has the instructions. `llama_supported` may not have been built."""
    try:
        return " avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _runs(x: torch.Tensor, multiple: int) -> bool:
    """bfloat16 on a CPU that has the kernels, with a last dimension that the vectors divide."""
    return x.dtype == torch.bfloat16 and x.is_cpu and x.shape[-1] % multiple == 0 and kernels() is not None


# ---- matrix products ----


def packed_shape(rows: int, columns: int) -> tuple[int, int, int, int]:
    """The shape in which a weight (rows, columns) is packed."""
    return -(-rows // LANES), columns // 2, LANES, 2


def can_pack_block(weight: torch.Tensor, packed: torch.Tensor, row: int, column: int, rows: int) -> bool:
    """Whether `pack_block` takes this block of a weight of `rows` rows."""
    whole = weight.shape[0] % LANES == 0 or row + weight.shape[0] == rows
    return (
        weight.dtype == packed.dtype == torch.bfloat16
        and weight.is_cpu
        and weight.stride(1) == 1
        and row % LANES == column % 2 == weight.shape[1] % 2 == 0
        and whole
    )


def pack_block(weight: torch.Tensor, packed: torch.Tensor, row: int, column: int) -> None:
    """Write a block of a weight, whose first entry is (row, column) of the whole, into its packed form."""
    library = kernels()
    assert library is not None
    columns = 2 * packed.shape[1]
    at = packed.data_ptr() + 2 * (row * columns + column * LANES)
    library.llama_bf16_pack(
        weight.data_ptr(), at, weight.stride(0), columns, *weight.shape, torch.get_num_threads()
    )


def pack(weight: torch.Tensor) -> torch.Tensor:
    """A bfloat16 CPU weight (out, in), `in` even -> groups of 16 outputs, (ceil(out / 16), in / 2, 16, 2)."""
    packed = torch.empty(packed_shape(*weight.shape), dtype=weight.dtype, device="cpu")
    pack_block(weight.contiguous(), packed, 0, 0)
    return packed


def unpack(packed: torch.Tensor, out_features: int) -> torch.Tensor:
    """The weight (out, in) that `pack` was given."""
    return packed.transpose(1, 2).reshape(-1, 2 * packed.shape[1])[:out_features].contiguous()


def linear(x: torch.Tensor, packed: torch.Tensor, out_features: int) -> torch.Tensor:
    """x (..., in) in bfloat16 times the transpose of a packed weight -> (..., out_features)."""
    library = kernels()
    assert library is not None
    x = x.contiguous()
    columns = x.shape[-1]
    y = torch.empty(*x.shape[:-1], out_features, dtype=x.dtype, device="cpu")
    rows = x.numel() // columns
    library.llama_bf16_linear(
        x.data_ptr(), packed.data_ptr(), y.data_ptr(), rows, columns, out_features, torch.get_num_threads()
    )
    return y


# ---- between the matrix products ----


def takes_norm(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `rms_norm` takes these."""
    return _runs(x, LANES) and weight.dtype == x.dtype and weight.is_contiguous()


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x (..., n) / rms(x) * weight (n,); n is a multiple of 16."""
    library = kernels()
    assert library is not None
    x = x.contiguous()
    n = x.shape[-1]
    y = torch.empty_like(x)
    rows = x.numel() // n
    library.llama_bf16_rms_norm(
        x.data_ptr(), weight.data_ptr(), y.data_ptr(), rows, n, eps, torch.get_num_threads()
    )
    return y


def takes_rotation(x_THD: torch.Tensor) -> bool:
    """Whether `rotate_` takes these heads."""
    return _runs(x_THD, LANES) and x_THD.is_contiguous()


def rotate_(x_THD: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Turn the interleaved pairs of x, contiguous, in place by table (T, D / 2) complex64; 16 divides D."""
    library = kernels()
    assert library is not None
    assert x_THD.is_contiguous()
    library.llama_bf16_rotate(x_THD.data_ptr(), table.data_ptr(), *x_THD.shape, torch.get_num_threads())
    return x_THD


def takes_layers(x_TC: torch.Tensor) -> bool:
    """Whether the kernel for whole layers (fused_call.py) takes these rows."""
    return _runs(x_TC, LANES)


# ---- attention ----


def takes_decode(q_THD: torch.Tensor) -> bool:
    """Whether `decode_attention` takes these queries: a single token's."""
    return q_THD.shape[0] == 1 and _runs(q_THD, 2 * LANES)


def decode_attention(
    q_1HD: torch.Tensor,
    k_1KD: torch.Tensor,
    v_1KD: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    position: int,
) -> torch.Tensor:
    """Store a token at `position` of a cache (K, capacity, D) and attend to 0..position -> (1, H, D).

    All tensors are contiguous; D is a multiple of 32.
    """
    library = kernels()
    assert library is not None
    assert position < keys.shape[1]
    out_1HD = torch.empty_like(q_1HD)
    assert all(x.is_contiguous() for x in (q_1HD, k_1KD, v_1KD, keys, values, out_1HD))
    _, heads, dim = q_1HD.shape
    room = -(-(position + 1) // LANES) * LANES
    score = torch.empty(heads * room, dtype=torch.float32, device="cpu")
    library.llama_bf16_decode(
        *(x.data_ptr() for x in (q_1HD, k_1KD, v_1KD, keys, values, out_1HD, score)),
        *(heads, keys.shape[0], dim, keys.shape[1], position, room),
        dim**-0.5,
        torch.get_num_threads(),
    )
    return out_1HD


def takes_chunk(q_THD: torch.Tensor) -> bool:
    """Whether `chunk_attention` takes these queries."""
    return q_THD.shape[2] <= _MAX_HEAD_DIM and _runs(q_THD, 2 * LANES)


def chunk_attention(
    q_THD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, start: int
) -> torch.Tensor:
    """Attend from tokens at positions start.. of a cache (K, capacity, D) to 0..their own -> (T, H, D).

    Their keys and values are stored already. All tensors are contiguous; D is a multiple of 32, at most 256.
    """
    library = kernels()
    assert library is not None
    rows, heads, dim = q_THD.shape
    assert start + rows <= keys.shape[1]
    assert dim <= _MAX_HEAD_DIM
    out_THD = torch.empty_like(q_THD)
    assert all(x.is_contiguous() for x in (q_THD, keys, values, out_THD))
    library.llama_bf16_attend(
        *(x.data_ptr() for x in (q_THD, keys, values, out_THD)),
        *(rows, heads, keys.shape[0], dim, keys.shape[1], start),
        dim**-0.5,
        torch.get_num_threads(),
    )
    return out_THD


# ---- rows of logits ----

_logits_space = threading.local()


def takes_logits(logits_RV: torch.Tensor) -> bool:
    """Whether `draw` and `log_probabilities` take these: contiguous float32 on a CPU that has the kernels."""
    whole = logits_RV.is_contiguous() and logits_RV.numel() > 0
    return logits_RV.dtype == torch.float32 and logits_RV.is_cpu and whole and kernels() is not None


def draw(logits_RV: torch.Tensor, params_R5: np.ndarray[Any, np.dtype[np.float64]]) -> torch.Tensor:
    """An id for each row of finite logits, (R,) int64.

    Args:
        params_R5: temperature (0: the greatest logit), top-p, top-k (V for all), min-p, uniform number.
    """
    ids = torch.empty(len(logits_RV), dtype=torch.int64, device="cpu")
    assert params_R5.flags.c_contiguous
    assert params_R5.shape == (len(logits_RV), 5)
    _on_rows("draw", logits_RV, params_R5.ctypes.data, ids.data_ptr())
    return ids


def log_probabilities(logits_RV: torch.Tensor, ids_R: torch.Tensor) -> torch.Tensor:
    """log softmax of each row of finite logits at its id, (R,) float32."""
    logs = torch.empty(len(logits_RV), dtype=torch.float32, device="cpu")
    ids_R = ids_R.contiguous()
    assert ids_R.dtype == torch.int64
    assert len(ids_R) == len(logits_RV)
    _on_rows("logs", logits_RV, ids_R.data_ptr(), logs.data_ptr())
    return logs


def _on_rows(name: str, logits_RV: torch.Tensor, *pointers: int) -> None:
    """Call a function of csrc/rows.c, in this thread's work space."""
    library = kernels()
    assert library is not None
    rows, vocab = logits_RV.shape
    threads = min(rows, torch.get_num_threads())
    size = threads * library.llama_rows_space(vocab)
    space: torch.Tensor | None = getattr(_logits_space, "space", None)
    if space is None or len(space) < size:
        space = _logits_space.space = torch.empty(size, dtype=torch.uint8, device="cpu")
    function = getattr(library, f"llama_rows_{name}")
    function(logits_RV.data_ptr(), *pointers, space.data_ptr(), rows, vocab, threads)
