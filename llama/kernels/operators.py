"""The operators, as the layers and the runner call them: each looks up its row of table.py, and remembers it.

Products are in weights.py and whole layers in fused.py, which hold what was chosen for them at load.

Shapes: T tokens, H heads, K key/value heads, D head dimension, R rows of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch

from ..sampling import SamplingParams
from . import attention, cached, flash, native, norms, sampling
from .quantized import Form
from .quantized_weights import Quantized, QuantizedFormat
from .steps import Step
from .table import ROWS, Case, choose, implementation, is_native
from .weights import PLAIN, Blocked, PackedWeight, Shape, WeightFormat

__all__ = [
    "Attend",
    "attend",
    "attention_for",
    "attention_name",
    "block_for",
    "computes_well",
    "decide",
    "embed",
    "log_probabilities",
    "moved",
    "pack",
    "quantized_format",
    "recognise",
    "recorded_for",
    "rms_norm",
    "rotate",
    "weight_format",
    "why_not_quantized",
]

# (q (T, H, D), k and v (T, K, D), a layer's keys and values (K, blocks, B, row), step) -> (T, H, D); see `attend`.
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Step], torch.Tensor]


# ---- weights ----


def weight_format(dtype: torch.dtype, device: torch.device) -> WeightFormat:
    """How weights of a dtype are stored on a device. Not remembered: a program can switch oneDNN off."""
    case = Case(dtype, device.type, native.kernels())
    found: WeightFormat = choose("linear", case).implement(case)
    return found


def quantized_format(form: Form, device: torch.device) -> QuantizedFormat | None:
    """How weights that are quantized in that form are stored on a device; None where only plain ones are multiplied."""
    case = Case(form.format, device.type, native.kernels(), group=form.group)
    found = choose("linear", case).implement(case)
    return found if isinstance(found, QuantizedFormat) else None


def why_not_quantized(form: Form, device: torch.device) -> str:
    """Why `quantized_format` has none, as people read it."""
    case = Case(form.format, device.type, native.kernels(), group=form.group)
    return "; ".join(f"{row.name}: {row.why_not(case)}" for row in ROWS["linear"][:-1])


def pack(weight: torch.Tensor) -> PackedWeight:
    """A loaded weight (out, in) in the format of its row. The caller drops the plain one.

    Call it once per weight, in its final dtype and on its final device. What was packed shares no memory with it.
    """
    packs = weight.dim() == 2 and weight.numel() and not weight.requires_grad and native.has_memory(weight)
    form = weight_format(weight.dtype, weight.device) if packs else PLAIN
    return form.pack(weight)


def moved(weight: PackedWeight, device: torch.device, dtype: torch.dtype) -> PackedWeight:
    """A quantized weight as another device multiplies it; plain, in that dtype, where it has no kernel for it."""
    form = weight.format
    to = quantized_format(form.form(weight), device) if isinstance(form, Quantized) else None
    if to is None or not isinstance(form, Quantized):
        return pack(weight.plain().to(device, dtype))
    return to.pack_blocks(form.blocks(weight), weight.shape[1], dtype, device)


def recognise(tensor: torch.Tensor, shape: Shape) -> PackedWeight:
    """The weight of that shape that someone put in the place of another: plain, or another layer's packed one.

    Raises:
        RuntimeError: the tensor holds integers, as the codes of a quantized weight are.
    """
    if not tensor.is_floating_point():
        raise RuntimeError(
            f"a weight of {tensor.dtype} was put into a layer: codes of a quantized weight say nothing without their"
            " scales; use layer.assign(other.packed)"
        )
    formats = (row.implement(Case(tensor.dtype, "cpu", native.kernels())) for row in ROWS["linear"])
    form = next(each for each in formats if each.lies_in(tensor, shape))
    # Kernels know an address: what lies there is held, even if the tensor gets other memory.
    return PackedWeight(form, shape, tensor.detach() if isinstance(form, Blocked) else tensor)


def computes_well(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products in this dtype have a better row than the reference there."""
    return is_native("linear", Case(dtype, device.type, native.kernels()))


# ---- the other operators ----


def attention_for(form: cached.CacheFormat, device: torch.device, head_dim: int, block: int = 1) -> Attend:
    """The row for caches of a format on a device, in blocks of so many positions. `attend` calls it.

    Not remembered: what a device takes is tried when the first cache is made there (flash.py).
    """
    case = _of_cache(form, device, head_dim, block)
    found: Attend = choose("attention", case).implement(case)
    return found


def attention_name(form: cached.CacheFormat, device: torch.device, head_dim: int, block: int) -> str:
    """The name of that row."""
    return choose("attention", _of_cache(form, device, head_dim, block)).name


def block_for(form: cached.CacheFormat, device: torch.device, head_dim: int) -> int | None:
    """Positions of the blocks that attention on a device takes best; None if it is all the same."""
    row = attention_for(form, device, head_dim, flash.WHOLE)
    return flash.WHOLE if isinstance(row, flash.Flash) and row.way == "tables" else None


def recorded_for(row: Attend, step: Step) -> Hashable:
    """What a recording of a step's operators is good for, beside the sizes of `step.tensors`: alike steps are equal."""
    return row.recorded_for(step) if isinstance(row, flash.Flash) else None


def _of_cache(form: cached.CacheFormat, device: torch.device, head_dim: int, block: int) -> Case:
    index = torch.cuda.current_device() if device == torch.device("cuda") else device.index or 0
    return Case(form, device.type, native.kernels(), head_dim=head_dim, block=block, device_index=index)


def attend(
    row: Attend,
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    step: Step,
) -> torch.Tensor:
    """Store a step's T tokens in a layer's blocks; each attends to its sequence up to itself -> (T, H, D).

    Args:
        row: from `attention_for`.
        keys, values: (K, blocks, B, row), contiguous, of the whole pool. A row is as `cached.row_of` says: D
            numbers, or int8 blocks.
        step: where the tokens are stored, and what each sequence has.
    """
    dtype = q_THD.dtype
    alike = dtype in native.DTYPES if cached.format_of(keys) == cached.INT8 else dtype == keys.dtype
    # A layer whose weights were replaced may make other heads than the cache has; a model may have been moved.
    fits = (
        alike
        and dtype == k_TKD.dtype == v_TKD.dtype
        and q_THD.device == keys.device
        and k_TKD.shape == v_TKD.shape == (len(q_THD), keys.shape[0], q_THD.shape[2])
        and cached.head_dim_of(keys) == q_THD.shape[2]
        and q_THD.shape[1] % keys.shape[0] == 0
        # Operators of torch take every tensor; those of csrc/ read what is at its address.
        and (isinstance(row, flash.Flash) or all(map(native.has_memory, (q_THD, k_TKD, v_TKD))))
    )
    if not fits or _differentiates(q_THD):
        row = attention.attend
    return row(q_THD, k_TKD, v_TKD, keys, values, step)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / rms(x) * weight over the last dimension, normalised in float32 (Zhang and Sennrich 2019)."""
    row = norms.rms_norm
    alike = weight.dtype == x.dtype and weight.device == x.device and weight.shape == x.shape[-1:]
    if alike and x.numel() and weight.is_contiguous() and (x.is_cuda or _calls(x)):
        row = implementation("norm", Case(x.dtype, _device(x), native.kernels(), x.shape[-1]))
    return row(x, weight, eps)


def rotate(x_THD: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Turn each interleaved pair (2j, 2j+1) of every head by its position's angle.

    table: (T, D / 2) complex64, from `norms.rotary_table`.
    """
    row = norms.rotate
    fits = table.shape == (x_THD.shape[0], x_THD.shape[2] // 2) and table.device == x_THD.device
    if fits and x_THD.is_contiguous() and table.is_contiguous() and _calls(x_THD):
        row = implementation(
            "rotation", Case(x_THD.dtype, x_THD.device.type, native.kernels(), head_dim=x_THD.shape[-1])
        )
    return row(x_THD, table)


def embed(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Rows of a weight (V, n) -> (..., n)."""
    row = implementation("embedding", Case(weight.dtype, _device(weight), None))
    found: torch.Tensor = row(ids, weight)
    return found


def decide(
    logits_RV: torch.Tensor,
    drawn_RV: torch.Tensor,
    params: Sequence[SamplingParams],
    uniforms: Sequence[float],
) -> sampling.Decided:
    """An id of each row, the log softmax of the logits there, and how many logits of the row are not finite.

    Args:
        drawn_RV: what the ids are drawn from, the logits themselves or what `adjust` made of them. A number may be
            -inf, which is never drawn, as long as another one of its row is finite.
        uniforms: in [0, 1); greedy rows ignore theirs.
    """
    reference = partial(sampling.decide, sampling.sample)
    row = _of_logits("draw", logits_RV, reference) if drawn_RV.is_contiguous() else reference
    found: sampling.Decided = row(logits_RV, drawn_RV, params, uniforms)
    return found


def log_probabilities(logits_RV: torch.Tensor, ids_R: torch.Tensor) -> torch.Tensor:
    """log softmax of each row at its id, (R,) float32, before temperature and limits."""
    found: torch.Tensor = _of_logits("scores", logits_RV, sampling.log_probabilities)(logits_RV, ids_R)
    return found


def _of_logits(operator: str, logits_RV: torch.Tensor, reference: Any) -> Any:
    if not logits_RV.is_contiguous() or not logits_RV.numel() or not native.has_memory(logits_RV):
        return reference
    return implementation(operator, Case(logits_RV.dtype, _device(logits_RV), native.kernels()))


def _device(x: torch.Tensor) -> str:
    """`x.device.type`, which makes a device and a string each time."""
    return "cpu" if x.is_cpu else x.device.type


def _calls(x: torch.Tensor) -> bool:
    """Whether a function in C can be called with the address of x."""
    return native.has_memory(x) and not _differentiates(x)


def _differentiates(x: torch.Tensor) -> bool:
    """Whether someone will ask for a derivative, which only the references have."""
    return x.requires_grad and torch.is_grad_enabled()
