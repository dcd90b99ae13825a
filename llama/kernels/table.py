"""The table of kernels: (operator, weight or cache format, device) -> implementation, best first.

A row says why it does not take a case, or nothing if it does; the first one that takes it is used. An operator's
last row is its reference in plain torch, which takes everything. What is known only when an operator is called (a
derivative, strides, an empty batch) is looked at there, and goes to the reference: see operators.py.

`codellama info --kernels` prints what this machine takes; docs/kernels.md says how to add a row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from . import attention, cached, draws, flash, flash_trial, norms, onednn, sampling, torch_int4
from .native import DTYPES, LANES, Kernels
from .quantized import FORMATS
from .quantized_weights import Quantized
from .torch_int4 import TorchInt4
from .weights import ONEDNN, PLAIN, Blocked, WeightFormat

__all__ = ["ROWS", "Case", "Row", "choose", "dtype_name", "implementation", "is_native"]

# The largest head of csrc/attention.c, whose threads keep one on their stacks (DEEP in attention.h), and of torch's
# flash attention.
_MAX_HEAD_DIM = 256


class Case(NamedTuple):
    """What a row is asked about. A size that is 0 is not known, or of no matter.

    Args:
        format: of the weight (linear; a name in quantized.FORMATS if it is quantized), of the cache (attention; or
            cached.INT8), else of the rows.
        device: its type, as torch names it.
        kernels: the compiled kernels that may be used.
        width: numbers of a row that a norm sees, or of the model.
        head_dim: numbers of a head.
        hidden: width of the feed-forward.
        group: inputs that share a scale of a quantized weight.
        block: positions of a block of the cache.
        device_index: of the device, among those of its type.
    """

    format: torch.dtype | str
    device: str
    kernels: Kernels | None
    width: int = 0
    head_dim: int = 0
    hidden: int = 0
    group: int = 0
    block: int = 0
    device_index: int = 0


class Row(NamedTuple):
    """One implementation of an operator.

    Args:
        why_not: the reason why it does not take a case; None if it does.
        implement: what it is for a case that it takes. Of linear a `WeightFormat`; of layers the `Kernels` that
            fused.py calls, or None for the model's modules; of all others a function.
    """

    name: str
    why_not: Callable[[Case], str | None]
    implement: Callable[[Case], Any]


def _always(case: Case) -> None:
    """Of a reference, which takes everything."""
    return None


def _torch(function: Any) -> Row:
    return Row("torch", _always, lambda case: function)


def _csrc(method: str, refuses: Callable[[Case], str | None] = _always) -> Row:
    """A method of `Kernels`, for what it does not refuse."""
    return Row(
        "csrc", lambda case: _not_csrc(case) or refuses(case), lambda case: getattr(_kernels(case), method)
    )


def _kernels(case: Case) -> Kernels:
    assert case.kernels is not None
    return case.kernels


def _not_csrc(case: Case) -> str | None:
    """Why nothing of csrc/ takes a case."""
    if case.device != "cpu":
        return "it is for CPUs"
    if case.format not in DTYPES:
        return f"it has no {dtype_name(case.format)}"
    return "no compiled kernels are in use" if case.kernels is None else None


def _not_cuda(case: Case) -> str | None:
    """Why a case is not for what is made for launched kernels."""
    return None if case.device == "cuda" else "it is for CUDA devices"


def _not_weights(case: Case) -> str | None:
    """Why csrc/ does not multiply by such a weight."""
    if case.format not in FORMATS:
        return _not_csrc(case)
    return _not_csrc(case._replace(format=torch.float32))  # the rows beside it


def _weights(case: Case) -> WeightFormat:
    if isinstance(case.format, str):
        return Quantized(case.format, case.group, case.kernels)
    return Blocked(case.kernels)


def _not_torch_int4(case: Case) -> str | None:
    quantization = FORMATS.get(str(case.format))
    if case.device != "cuda":
        return "it is for CUDA devices"
    if quantization is None:
        return f"it multiplies by weights of 4 bit, not by {dtype_name(case.format)}"
    if quantization.bits != 4:
        return "torch's product of 8 bit takes one scale for a whole row"
    return torch_int4.why_not()


def _not_onednn(case: Case) -> str | None:
    if case.device != "cpu":
        return "it is for CPUs"
    if case.format not in onednn.DTYPES:
        return f"it packs no {dtype_name(case.format)}"
    if not torch._C._get_mkldnn_enabled():
        return "this program has switched it off"
    if not onednn.can_pack(case.format):
        return f"it does not pack {dtype_name(case.format)} on this CPU, or in this build of torch"
    return None


def _not_whole(size: int, vector: int, what: str) -> str | None:
    return f"{what} of {size} numbers, which is not a multiple of {vector}" if size % vector else None


def _too_large(case: Case) -> str | None:
    if case.head_dim > _MAX_HEAD_DIM:
        return f"heads of {case.head_dim} numbers, which is more than {_MAX_HEAD_DIM}"
    return None


def _not_attention(case: Case) -> str | None:
    return _too_large(case) or _not_whole(case.head_dim, 2 * LANES, "heads")


def _not_cached(case: Case) -> str | None:
    """Why csrc/ has no attention over caches of this format; int8 is there for each dtype of the activations."""
    if case.format == cached.INT8:
        case = case._replace(format=torch.float32)
    return _not_csrc(case) or _not_attention(case)


def _not_flash(way: str, case: Case) -> str | None:
    """Why torch's flash attention does not read a cache in this way; see flash.py."""
    if case.device != "cuda":
        return "it is for CUDA devices"
    if case.format not in (*flash.DTYPES, cached.INT8):
        return f"it has no {dtype_name(case.format)}"
    if why := _too_large(case) or _not_whole(case.head_dim, 8, "heads"):
        return why
    if way != "gathered" and case.format == cached.INT8:
        return "it reads no int8 where it lies"
    if way == "tables" and not flash.knows_tables():
        return "this torch takes no tables of blocks"
    if way == "tables" and case.block % flash.WHOLE:
        return f"blocks of {case.block} positions, which is not a multiple of {flash.WHOLE}"
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    device = torch.device("cuda", case.device_index)
    if torch.cuda.get_device_capability(device)[0] < 8:
        return "it needs a device of capability 8 or more"
    return flash_trial.why_not(way, device, case.format, case.head_dim or 128)


def _flash(way: str) -> Row:
    return Row(f"flash, {way}", partial(_not_flash, way), lambda case: flash.Flash(way))


def _not_layers(case: Case) -> str | None:
    return (
        _not_whole(case.width, LANES, "rows")
        or _not_attention(case)
        or _not_whole(case.hidden, 2, "rows of the feed-forward")
    )


def _not_logits(case: Case) -> str | None:
    return None if case.format == torch.float32 else "it takes logits in float32 only"


def dtype_name(dtype: torch.dtype | str) -> str:
    """As people write it."""
    return str(dtype).removeprefix("torch.")


ROWS: dict[str, tuple[Row, ...]] = {
    "linear": (
        Row("csrc", _not_weights, _weights),
        Row("oneDNN", _not_onednn, lambda case: ONEDNN),
        Row("torch int4", _not_torch_int4, lambda case: TorchInt4(str(case.format), case.group)),
        Row("torch", _always, lambda case: PLAIN),
    ),
    "layers": (
        Row("csrc", lambda case: _not_csrc(case) or _not_layers(case), lambda case: case.kernels),
        Row("modules", _always, lambda case: None),
    ),
    "attention": (
        Row("csrc", _not_cached, lambda case: _kernels(case).attention),
        *map(_flash, ("tables", "runs", "gathered")),
        _torch(attention.attend),
    ),
    "norm": (
        _csrc("rms_norm", lambda case: _not_whole(case.width, LANES, "rows")),
        Row("torch launched", _not_cuda, lambda case: norms.rms_norm_launched),
        _torch(norms.rms_norm),
    ),
    "rotation": (
        _csrc("rotate", lambda case: _not_whole(case.head_dim, LANES, "heads")),
        _torch(norms.rotate),
    ),
    "embedding": (_torch(F.embedding),),
    "draw": (
        Row(
            "csrc",
            lambda case: _not_csrc(case) or _not_logits(case),
            lambda case: partial(sampling.decide_compiled, _kernels(case)),
        ),
        Row("torch unbranched", _not_cuda, lambda case: partial(sampling.decide, draws.sample)),
        _torch(partial(sampling.decide, sampling.sample)),
    ),
    "scores": (_csrc("log_probabilities", _not_logits), _torch(sampling.log_probabilities)),
}


def choose(operator: str, case: Case) -> Row:
    """The best row that takes a case."""
    return next(row for row in ROWS[operator] if row.why_not(case) is None)


@cache
def implementation(operator: str, case: Case) -> Any:
    """What `choose` finds, remembered."""
    return choose(operator, case).implement(case)


def is_native(operator: str, case: Case) -> bool:
    """Whether a case has a better row than the reference."""
    return choose(operator, case) is not ROWS[operator][-1]
