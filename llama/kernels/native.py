"""The compiled kernels in csrc/, where they were built and this CPU can run them.

`pip install` builds them if it finds a C compiler; nothing depends on it. Knows pointers and shapes;
who uses them, and when, is decided in linear.py.
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
    "attend",
    "available",
    "can_pack_block",
    "decode",
    "draw",
    "fits",
    "fits_rows",
    "kernels",
    "linear",
    "log_probabilities",
    "pack",
    "pack_block",
    "packed_shape",
    "ranks_library",
    "rms_norm",
    "rotate_",
    "unpack",
    "why_missing",
]

# Of csrc/bf16.c and its neighbours. Goes up there and here with every change of a signature or layout.
_ABI = 7
# What setup.py writes where a compiler failed.
_NOTE = Path(__file__).with_name("_cpu.failed.txt")
# Outputs of one group of a packed weight.
LANES = 16
_TYPES = {
    "p": ctypes.c_void_p,
    "n": ctypes.c_long,
    "u": ctypes.c_uint64,
    "f": ctypes.c_float,
    "i": ctypes.c_int,
}
_RANKS_SIGNATURES = {"bytes": "nn", "enter": "pn", "sum": "pnnnuuuupnni", "gather": "pnnnuuuuppni"}
_ROWS_SIGNATURES = {"space": "n", "draw": "ppppnni", "logs": "ppppnni"}
_SIGNATURES = {
    "pack": "ppnnnni",
    "linear": "pppnnni",
    "rms_norm": "pppnnfi",
    "rotate": "ppnnni",
    "decode": "pppppppnnnnnnfi",
    "layers": "ppppnn",
    "attend": "ppppnnnnnnfi",
}


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
        if not hasattr(library, "llama_bf16_abi") or library.llama_bf16_abi() != _ABI:
            return None  # built from another version of the source; install again
        for prefix, signatures, result in (
            ("bf16", _SIGNATURES, None),
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
    """The functions of csrc/ranks.c, which any CPU runs; for shared.py."""
    return _loaded()


@cache
def kernels() -> ctypes.CDLL | None:
    """The kernels of csrc/bf16.c and csrc/rows.c, or None where this CPU lacks their instructions."""
    library = _loaded()
    return library if library is not None and library.llama_bf16_supported() else None


def available() -> bool:
    """Whether the bfloat16 kernels are there."""
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
    """Whether this CPU has the instructions, by what Linux says: the kernels that know better are not there."""
    try:
        return " avx512_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def packed_shape(rows: int, columns: int) -> tuple[int, int, int, int]:
    """Of a packed weight (rows, columns)."""
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
    """A bfloat16 CPU weight (out, in), `in` even, as groups of 16 outputs: (ceil(out / 16), in / 2, 16, 2)."""
    packed = torch.empty(packed_shape(*weight.shape), dtype=weight.dtype, device="cpu")
    pack_block(weight.contiguous(), packed, 0, 0)
    return packed


def unpack(packed: torch.Tensor, out_features: int) -> torch.Tensor:
    """What `pack` was given."""
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


def fits(x: torch.Tensor, multiple: int) -> bool:
    """Whether the kernels below take x: bfloat16 on a CPU that has them, last dimension of the right multiple."""
    return x.dtype == torch.bfloat16 and x.is_cpu and x.shape[-1] % multiple == 0 and available()


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


def rotate_(x_THD: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Turn the interleaved pairs of x, contiguous, in place by table (T, D / 2) complex64; D is a multiple of 16."""
    library = kernels()
    assert library is not None
    assert x_THD.is_contiguous()
    library.llama_bf16_rotate(x_THD.data_ptr(), table.data_ptr(), *x_THD.shape, torch.get_num_threads())
    return x_THD


def decode(
    q_HD: torch.Tensor,
    k_KD: torch.Tensor,
    v_KD: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    position: int,
    out_HD: torch.Tensor,
) -> None:
    """Store one token's key and value at `position` of a cache (K, capacity, D) and attend to 0..position.

    All contiguous; D is a multiple of 32. `out_HD` receives the result.
    """
    library = kernels()
    assert library is not None
    assert position < keys.shape[1]
    assert all(x.is_contiguous() for x in (q_HD, k_KD, v_KD, keys, values, out_HD))
    heads, dim = q_HD.shape
    room = -(-(position + 1) // LANES) * LANES
    score = torch.empty(heads * room, dtype=torch.float32, device="cpu")
    library.llama_bf16_decode(
        *(x.data_ptr() for x in (q_HD, k_KD, v_KD, keys, values, out_HD, score)),
        *(heads, keys.shape[0], dim, keys.shape[1], position, room),
        dim**-0.5,
        torch.get_num_threads(),
    )


def attend(
    q_THD: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, start: int, out_THD: torch.Tensor
) -> None:
    """Attend from tokens at positions start.. of a cache (K, capacity, D), stored there already, to 0..their own.

    All contiguous; D is a multiple of 32, at most 256. `out_THD` receives the result.
    """
    library = kernels()
    assert library is not None
    rows, heads, dim = q_THD.shape
    assert start + rows <= keys.shape[1]
    assert dim <= 256
    assert all(x.is_contiguous() for x in (q_THD, keys, values, out_THD))
    library.llama_bf16_attend(
        *(x.data_ptr() for x in (q_THD, keys, values, out_THD)),
        *(rows, heads, keys.shape[0], dim, keys.shape[1], start),
        dim**-0.5,
        torch.get_num_threads(),
    )


# ---- rows of logits ----

_rows_space = threading.local()


def fits_rows(logits_RV: torch.Tensor) -> bool:
    """Whether the two below take these logits: contiguous float32 on a CPU that has the kernels."""
    whole = logits_RV.is_contiguous() and logits_RV.numel() > 0
    return logits_RV.dtype == torch.float32 and logits_RV.is_cpu and whole and available()


def draw(logits_RV: torch.Tensor, params_R5: np.ndarray[Any, np.dtype[np.float64]]) -> torch.Tensor:
    """An id for each row of finite logits, (R,) int64.

    Args:
        params_R5: temperature (0: the greatest logit), top-p, top-k (V for all), min-p, and the uniform number.
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
    space: torch.Tensor | None = getattr(_rows_space, "space", None)
    if space is None or len(space) < size:
        space = _rows_space.space = torch.empty(size, dtype=torch.uint8, device="cpu")
    function = getattr(library, f"llama_rows_{name}")
    function(logits_RV.data_ptr(), *pointers, space.data_ptr(), rows, vocab, threads)
