"""The compiled kernels in csrc/, where they were built and this CPU can run them.

`pip install` builds them if it finds a C compiler; nothing depends on it. Knows pointers and shapes;
who uses them, and when, is decided in linear.py.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

__all__ = ["attend", "available", "decode", "fits", "linear", "pack", "rms_norm", "rotate_", "unpack"]

# Of csrc/bf16.c. Goes up there and here with every change of a signature or layout.
_ABI = 2
_LANES = 16
_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_long, "f": ctypes.c_float, "i": ctypes.c_int}
_SIGNATURES = {
    "pack": "ppnni",
    "linear": "pppnnni",
    "rms_norm": "pppnnfi",
    "rotate": "ppnnni",
    "decode": "pppppppnnnnnnfi",
    "attend": "ppppnnnnnnfi",
}


@cache
def _library() -> ctypes.CDLL | None:
    """The library, or None. Its OpenMP calls resolve to the runtime that torch has loaded."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_bf16" + suffix)
        if not path.is_file():
            continue
        try:
            library = ctypes.CDLL(str(path))
        except OSError:  # built against a torch whose OpenMP has other symbols
            return None
        if not hasattr(library, "llama_bf16_abi") or library.llama_bf16_abi() != _ABI:
            return None  # built from another version of the source; install again
        for name, signature in _SIGNATURES.items():
            function = getattr(library, f"llama_bf16_{name}")
            function.argtypes = [_TYPES[letter] for letter in signature]
            function.restype = None
        return library if library.llama_bf16_supported() else None
    return None


def available() -> bool:
    """Whether the bfloat16 kernels are there."""
    return _library() is not None


def pack(weight: torch.Tensor) -> torch.Tensor:
    """A bfloat16 CPU weight (out, in), `in` even, as groups of 16 outputs: (ceil(out / 16), in / 2, 16, 2)."""
    library = _library()
    assert library is not None
    weight = weight.contiguous()
    rows, columns = weight.shape
    packed = torch.empty(-(-rows // _LANES), columns // 2, _LANES, 2, dtype=weight.dtype, device="cpu")
    library.llama_bf16_pack(weight.data_ptr(), packed.data_ptr(), rows, columns, torch.get_num_threads())
    return packed


def unpack(packed: torch.Tensor, out_features: int) -> torch.Tensor:
    """What `pack` was given."""
    return packed.transpose(1, 2).reshape(-1, 2 * packed.shape[1])[:out_features].contiguous()


def linear(x: torch.Tensor, packed: torch.Tensor, out_features: int) -> torch.Tensor:
    """x (..., in) in bfloat16 times the transpose of a packed weight -> (..., out_features)."""
    library = _library()
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
    library = _library()
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
    library = _library()
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
    library = _library()
    assert library is not None
    assert position < keys.shape[1]
    assert all(x.is_contiguous() for x in (q_HD, k_KD, v_KD, keys, values, out_HD))
    heads, dim = q_HD.shape
    room = -(-(position + 1) // _LANES) * _LANES
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
    library = _library()
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
