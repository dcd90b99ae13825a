"""The compiled kernels of csrc/, on tensors.

compiled.py opens the libraries, table.py says which tensors each function takes. Nothing depends on them: every
operator also has a row in plain torch.
"""

from __future__ import annotations

import ctypes
import threading
from array import array
from typing import Any

import torch

from . import cached, compiled
from .levels import Level
from .quantized import BLOCK, FORMATS, Blocks, Form, RawRows
from .steps import Parts, Step

__all__ = [
    "DTYPES",
    "LANES",
    "UNPACKED",
    "Kernels",
    "Matrix",
    "cache_number",
    "codes_shape",
    "has_memory",
    "kernels",
    "matrix",
    "open_kernels",
    "quantized_matrix",
    "quantized_shapes",
]

# As in csrc/numbers.h. These are the activations' dtypes, and the formats of plain weights.
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
# Outputs of one group of a packed weight, on every level.
LANES = 16
# Types of GGUF that csrc/unpack.c takes, by the numbers that stand in a file.
UNPACKED = {
    **{"Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8},
    **{"Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14},
}
# Inputs of one step of a packed weight: bfloat16 lies in pairs.
_STEP = {torch.float32: 1, torch.float16: 1, torch.bfloat16: 2}


class Matrix(ctypes.Structure):
    """matrix_t of csrc/matrix.h: a packed weight. It does not keep the memory that it points to."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("format", "out", "inputs", "columns", "group")),
        *((name, ctypes.c_void_p) for name in ("codes", "scales", "zeros", "order")),
    )


def matrix(codes: torch.Tensor, shape: tuple[int, int]) -> Matrix:
    """A weight of this shape (out, in) that lies packed in `codes`."""
    return Matrix(DTYPES[codes.dtype], *shape, shape[1], 0, codes.data_ptr())


def quantized_matrix(
    form: Form, shape: tuple[int, int], codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None
) -> Matrix:
    """A weight of this shape (out, in), quantized in a form, that lies packed in tensors of `quantized_shapes`."""
    return Matrix(
        *(FORMATS[form.format].number, shape[0], form.columns, shape[1], form.group),
        *(None if part is None else part.data_ptr() for part in (codes, scales, zeros, form.order)),
    )


class _Heads(ctypes.Structure):
    """heads_t of csrc/attention.h."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("heads", "kv_heads", "dim", "positions")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_int) for name in ("dtype", "cache", "shift")),
    )


class _Attend(ctypes.Structure):
    """attend_t of csrc/attention.c."""

    _fields_ = (
        ("heads", _Heads),
        ("parts", Parts),
        *((name, ctypes.c_void_p) for name in ("q", "key", "value", "keys", "values", "y", "score")),
        *((name, ctypes.c_long) for name in ("room", "threads")),
    )


def cache_number(form: cached.CacheFormat) -> int:
    """The number of a cache's format in C: as INT8 in csrc/cached.h, or a dtype's."""
    return DTYPES[form] if isinstance(form, torch.dtype) else FORMATS[form].number


def has_memory(x: torch.Tensor) -> bool:
    """Whether a tensor's numbers lie at its address. Those of a subclass may not: torch's fake tensors, which only
    have shapes, say that theirs is 0."""
    return type(x) is torch.Tensor or type(x) is torch.nn.Parameter


def codes_shape(shape: tuple[int, int], dtype: torch.dtype) -> tuple[int, int, int, int]:
    """The shape in which a weight (out, in) is packed: groups of 16 outputs, steps of inputs."""
    step = _STEP[dtype]
    return -(-shape[0] // LANES), -(-shape[1] // step), LANES, step


def quantized_shapes(form: Form, out: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...] | None]:
    """The shapes in which a quantized weight of `out` rows is packed: codes, scales (float16), zeros; others uint8."""
    _, bits, zero, parts, _ = FORMATS[form.format]
    groups, step = -(-out // LANES), 32 // bits
    codes = (groups, form.columns // step, LANES, 4)
    if parts == 2:
        return codes, (groups, form.groups, 2, LANES), (groups, form.columns // BLOCK, 2, LANES)
    scales = (groups, form.groups, LANES)
    return codes, scales, scales if zero is None else None


class Kernels:
    """The functions of csrc/ at one level of CPU. They check nothing: a row of table.py does.

    Args:
        level: that this CPU runs.
        library: of that level, opened by compiled.py.
    """

    def __init__(self, level: Level, library: ctypes.CDLL) -> None:
        self.level = level
        self._library = library
        self._logits_space = threading.local()

    def __repr__(self) -> str:
        return f"<Kernels {self.level.name}>"

    # ---- matrix products ----

    def pack(self, weight: torch.Tensor, whole: Matrix, row: int = 0, column: int = 0) -> None:
        """Write a weight, or a block of it whose first entry is (row, column) of the whole, into its packed form.

        It has the whole's dtype and its columns are contiguous. The row is a multiple of 16, the column even; so
        are the block's sizes, unless it ends with the whole. What is missing of the last group becomes 0.
        """
        self._library.llama_pack(
            *(ctypes.byref(whole), weight.data_ptr(), weight.stride(0), row, column),
            *(*weight.shape, torch.get_num_threads()),
        )

    def pack_blocks(self, blocks: Blocks, whole: Matrix, row: int = 0) -> None:
        """Write some rows of a quantized weight, of which the first is `row`, into its packed form.

        The row is a multiple of 16; so is the number of rows, unless they are the last.
        """
        codes, scales, zeros = blocks.codes, blocks.scales.contiguous(), blocks.zeros
        zeros = None if zeros is None else zeros.contiguous()
        codes = codes if codes.stride(1) == 1 else codes.contiguous()
        self._library.llama_pack_blocks(
            *(ctypes.byref(whole), codes.data_ptr(), codes.stride(0), scales.data_ptr()),
            *(None if zeros is None else zeros.data_ptr(), row, len(codes), torch.get_num_threads()),
        )

    def unpack(self, raw: RawRows, whole: Matrix, row: int = 0) -> bool:
        """Write rows of a file, of which the first is `row`, into the packed form -> whether all scales are finite.

        Rows as in `pack_blocks`. The whole has the format of the type's codes: Q8_0 int8, Q4_0 int4, Q4_K k4; int8
        if it is another one of UNPACKED, which is quantized again, as `to_int8` does it.
        """
        data = raw.data
        assert data.stride()[1:] == (data.shape[2], 1)
        finite: int = self._library.llama_unpack(
            *(ctypes.byref(whole), data.data_ptr(), data.stride(0), UNPACKED[raw.kind], raw.skip),
            *(row, len(data), torch.get_num_threads()),
        )
        return finite != 0

    def linear(self, x: torch.Tensor, weight: Matrix) -> torch.Tensor:
        """x (..., in) times the transpose of a packed weight, of any format -> (..., out), of x's dtype."""
        x = x.contiguous()
        dtype = DTYPES[x.dtype]
        y = torch.empty(*x.shape[:-1], weight.out, dtype=x.dtype, device="cpu")
        rows = x.numel() // weight.columns
        size = self._library.llama_linear_space(ctypes.byref(weight), rows, dtype)
        space = torch.empty(size, dtype=torch.uint8, device="cpu") if size else None
        self._library.llama_linear(
            ctypes.byref(weight),
            *(x.data_ptr(), y.data_ptr(), None if space is None else space.data_ptr()),
            *(rows, dtype, torch.get_num_threads()),
        )
        return y

    # ---- quantizing; quantizers.py says what ----

    def quantize_k4(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Contiguous float32 (rows, columns), 256 divides the columns -> codes, scales and zeros of `Blocks`."""
        rows, columns = weight.shape
        assert columns % 256 == 0
        codes = torch.empty(rows, columns, dtype=torch.uint8, device="cpu")
        scales = torch.empty(rows, columns // 256, 2, dtype=torch.float16, device="cpu")
        zeros = torch.empty(rows, columns // 32, 2, dtype=torch.uint8, device="cpu")
        self._library.llama_quantize_k4(
            *(x.data_ptr() for x in (weight, codes, scales, zeros)),
            *(weight.numel() // 256, torch.get_num_threads()),
        )
        return codes, scales, zeros

    def quantize_int4(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Contiguous float32 (rows, columns), 32 divides the columns -> codes and scales of `Blocks`."""
        rows, columns = weight.shape
        assert columns % 32 == 0
        codes = torch.empty(rows, columns, dtype=torch.uint8, device="cpu")
        scales = torch.empty(rows, columns // 32, dtype=torch.float16, device="cpu")
        self._library.llama_quantize_int4(
            *(x.data_ptr() for x in (weight, codes, scales)), weight.numel() // 32, torch.get_num_threads()
        )
        return codes, scales

    # ---- whole layers; fused_call.py has the structures ----

    def layers_formed(self, layers: int, count: int, dtype: torch.dtype) -> int:
        """`formed` of steps of a dtype through `count` layers at this address."""
        size: int = self._library.llama_layers_formed(layers, count, DTYPES[dtype])
        return size

    def layers_space(self, step: ctypes.Structure) -> int:
        """Bytes of work space for steps of this shape."""
        size: int = self._library.llama_layers_space(ctypes.byref(step))
        return size

    def layers(self, step: ctypes.Structure, layers: int, store: int, count: int, part: int) -> None:
        """Take a step through `count` layers, or through a part of one. Where these are, and their keys and values."""
        self._library.llama_layers(ctypes.byref(step), layers, store, count, part)

    # ---- between the matrix products ----

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x (..., n) / rms(x) * weight (n,); n is a multiple of 16."""
        x = x.contiguous()
        n = x.shape[-1]
        y = torch.empty_like(x)
        self._library.llama_rms_norm(
            *(x.data_ptr(), weight.data_ptr(), y.data_ptr()),
            *(x.numel() // n, n, eps, DTYPES[x.dtype], torch.get_num_threads()),
        )
        return y

    def rotate(self, x_THD: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """The interleaved pairs of x turned by table (T, D / 2) complex64, contiguous; 16 divides D."""
        # The C turns in place, but a hook may have kept x.
        y_THD = x_THD.clone(memory_format=torch.contiguous_format)
        self._library.llama_rotate(
            y_THD.data_ptr(), table.data_ptr(), *y_THD.shape, DTYPES[y_THD.dtype], torch.get_num_threads()
        )
        return y_THD

    def attention(
        self,
        q_THD: torch.Tensor,
        k_TKD: torch.Tensor,
        v_TKD: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        step: Step,
    ) -> torch.Tensor:
        """Store a step's tokens in a layer's blocks (K, blocks, B, row) and attend to each sequence -> (T, H, D).

        All tensors are of one dtype, but the blocks may be int8; these are contiguous, D is a multiple of 32, at most
        256.
        """
        assert len(q_THD) == step.firsts[-1]
        assert keys.is_contiguous()
        assert values.is_contiguous()
        q_THD, k_TKD, v_TKD = q_THD.contiguous(), k_TKD.contiguous(), v_TKD.contiguous()
        out_THD = torch.empty_like(q_THD)
        (_, heads, dim), (kv_heads, blocks, size, _) = q_THD.shape, keys.shape
        form = (dim**-0.5, DTYPES[q_THD.dtype], cache_number(cached.format_of(keys)), size.bit_length() - 1)
        call = _Attend(
            _Heads(heads, kv_heads, dim, blocks * size, *form),
            step.parts,
            *(x.data_ptr() for x in (q_THD, k_TKD, v_TKD, keys, values, out_THD)),
            threads=torch.get_num_threads(),
        )
        call.room = self._library.llama_attend_room(ctypes.byref(call))
        score = torch.empty(call.threads * call.room, dtype=torch.float32, device="cpu")
        call.score = score.data_ptr()
        self._library.llama_attend(ctypes.byref(call))
        return out_THD

    # ---- rows of logits: contiguous float32, at least one ----

    def decide(
        self, logits_RV: torch.Tensor, drawn_RV: torch.Tensor, numbers: array[float]
    ) -> tuple[list[int], list[float], list[int]]:
        """Of each row an id, its log softmax, and how many of its logits are not finite; if any, the others are 0.

        Args:
            drawn_RV: what the ids are drawn from; may be the same rows. Finite or -inf, at least one finite in each.
            numbers: five for each row, as of `draws.draw_numbers`.
        """
        rows = logits_RV.shape[0]  # torch's len() is written in Python
        assert drawn_RV.shape == logits_RV.shape
        assert len(numbers) == 5 * rows
        # Plain arrays: torch takes longer to make three tensors.
        ids, bad, logs = array("q", [0]) * rows, array("q", [0]) * rows, array("f", [0]) * rows
        addresses = (each.buffer_info()[0] for each in (numbers, ids, logs, bad))
        self._on_rows(self._library.llama_rows_decide, logits_RV, drawn_RV.data_ptr(), *addresses)
        return ids.tolist(), logs.tolist(), bad.tolist()

    def log_probabilities(self, logits_RV: torch.Tensor, ids_R: torch.Tensor) -> torch.Tensor:
        """log softmax of each row of finite logits at its id, (R,) float32."""
        logs = torch.empty(logits_RV.shape[0], dtype=torch.float32, device="cpu")
        ids_R = ids_R.contiguous()
        assert ids_R.dtype == torch.int64
        assert ids_R.shape == logits_RV.shape[:1]
        self._on_rows(self._library.llama_rows_logs, logits_RV, ids_R.data_ptr(), logs.data_ptr())
        return logs

    def _on_rows(self, function: Any, logits_RV: torch.Tensor, *pointers: int) -> None:
        """Call a function of csrc/rows.c, in this thread's work space."""
        rows, vocab = logits_RV.shape
        threads = min(rows, torch.get_num_threads())
        size = threads * self._library.llama_rows_space(vocab)
        space: torch.Tensor | None = getattr(self._logits_space, "space", None)
        if space is None or space.numel() < size:
            space = self._logits_space.space = torch.empty(size, dtype=torch.uint8, device="cpu")
        function(logits_RV.data_ptr(), *pointers, space.data_ptr(), rows, vocab, threads)


_opened: dict[str, Kernels | None] = {}


def open_kernels(level: Level) -> Kernels | None:
    """The kernels of a level that this CPU runs; None if they were not compiled, or from another source."""
    # By name: every operator asks, and the hash of a level's features is computed in Python.
    if level.name not in _opened:
        library = compiled.open_level(level)
        _opened[level.name] = None if library is None else Kernels(level, library)
    return _opened[level.name]


def kernels() -> Kernels | None:
    """The kernels that are used unless others are named: the best, or those of LLAMA_KERNELS; None without any.

    Raises:
        ConfigError: LLAMA_KERNELS names a level that is not there.
    """
    level = compiled.best()
    return None if level is None else open_kernels(level)
