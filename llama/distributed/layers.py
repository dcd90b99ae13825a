"""fairscale's parallel layers, with an explicit group, weights assigned later, and this package's kernels.

Every weight is split as in fairscale: `ColumnParallelLinear` along the output (dim 0 of the weight),
`RowParallelLinear` and `ParallelEmbedding` along the input or embedding (dim 1). Four things differ from the
layers of fairscale 0.4.13:

* They take their group from a `Parallel` value instead of fairscale's global registry. One rank needs no
  process group, models of different sizes live side by side, and a host program that uses fairscale itself is
  not affected.
* They allocate through `torch.empty`, so the meta device allocates nothing; fairscale's constructors allocate
  and scatter a full master weight on every rank.
* They store weights in the format that kernels/table.py chooses, and multiply through it.
* They are for inference only: collectives run in place and record no gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from fairscale.nn.model_parallel import layers as fairscale
from fairscale.nn.model_parallel.utils import divide_and_check_no_remainder
from torch import nn

from ..kernels.hooks import hooked
from ..kernels.operators import embed, moved, pack, recognise
from ..kernels.quantized_weights import QuantizedFormat
from ..kernels.weights import PLAIN, PackedWeight
from .environment import log_once
from .parallel import Parallel

__all__ = [
    "ColumnParallelLinear",
    "ParallelEmbedding",
    "ParallelLinear",
    "RowParallelLinear",
    "held_bytes",
    "joint_product",
]


def _parameter(rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(rows, columns), requires_grad=False)


class ParallelEmbedding(fairscale.ParallelEmbedding):  # type: ignore[misc]
    """Embedding split along its dimension: ids (...) -> (..., dim)."""

    def __init__(self, num_embeddings: int, embedding_dim: int, *, parallel: Parallel) -> None:
        nn.Module.__init__(self)
        self.parallel = parallel
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.embedding_dim_per_partition = divide_and_check_no_remainder(embedding_dim, parallel.size)
        self.weight = _parameter(num_embeddings, self.embedding_dim_per_partition)

    def assign(self, weight: torch.Tensor) -> None:
        """Take over a loaded weight."""
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        """Every rank looks up its columns; all get the whole rows."""
        return self.parallel.all_gather_last(embed(input_, self.weight))


class ParallelLinear(nn.Module):
    """A layer whose weight (out, in) is stored as this device multiplies it fastest; plain in a state dict.

    `weight` is the parameter that PyTorch sees: the codes of `packed`, or whatever was put in their place since.
    """

    weight: nn.Parameter
    shape: tuple[int, int]  # of the plain weight
    _packed: PackedWeight | None = None

    @property
    def packed(self) -> PackedWeight:
        """The weight, as it is now."""
        packed, weight = self._packed, self.weight
        # Another parameter may have the same codes, and bring other scales.
        if packed is None or not packed.holds(weight) or getattr(weight, "packed", packed) is not packed:
            packed = self._packed = _quantized(weight, self.shape) or recognise(weight, self.shape)
        return packed

    def assign(self, weight: torch.Tensor | PackedWeight) -> None:
        """Take over a loaded weight. The caller drops its own reference, so it is in memory once."""
        packed = weight if isinstance(weight, PackedWeight) else pack(weight)
        self.weight = nn.Parameter(packed.codes, requires_grad=False)
        self._packed = packed if packed.holds(self.weight) else None
        if packed.is_quantized:
            self.weight.packed = packed  # type: ignore[attr-defined]  # for a layer that is given this parameter

    def _plain(self) -> torch.Tensor:
        return self.packed.plain().to(self.packed.dtype)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        plain = self._plain()
        destination[prefix + "weight"] = plain if keep_vars else plain.detach()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        given = state_dict.get(prefix + "weight")
        packed = self.packed
        if packed.format is PLAIN or given is None or given.shape != self.shape:
            super()._load_from_state_dict(state_dict, prefix, *rest)
            return
        # A packed weight cannot be copied into: assign a new one, of the old one's dtype and device.
        value = given.detach().to(self.weight.device, packed.dtype, copy=True)
        if packed.is_quantized:
            if torch.equal(value, self._plain()):
                return  # as when a state dict comes back: the codes stay
            log_once(
                f"Weights in {packed.dtype} were loaded in the place of quantized ones, which are smaller"
            )
        self.assign(value)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """What `to`, `half`, `cuda` and their like do to each tensor is done to the plain weight.

        A quantized weight keeps its codes under a cast, which changes the dtype of the activations alone. On another
        device it is stored as that device multiplies it.
        """
        packed = self.packed
        if packed.format is PLAIN:
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if packed.is_quantized:
            self._apply_to_quantized(fn, packed)
            return self
        plain = packed.plain()
        changed = fn(plain)
        if changed is not plain:
            self.assign(changed)
        elif plain.is_shared():  # type: ignore[no-untyped-call]  # share_memory_ is the one that works in place
            self.weight.share_memory_()  # type: ignore[no-untyped-call]
        return self

    def _apply_to_quantized(self, fn: Callable[[torch.Tensor], torch.Tensor], packed: PackedWeight) -> None:
        sample = torch.empty(1, dtype=packed.dtype, device=packed.codes.device)
        changed = fn(sample)
        if changed.device != sample.device:
            self.assign(moved(packed, changed.device, changed.dtype))
            if not self.packed.is_quantized and changed.device.type != "meta":
                log_once(
                    f"Quantized weights were moved to {changed.device}, which has no kernel for them: they are"
                    f" {changed.dtype} there"
                )
        elif changed is sample and sample.is_shared():  # type: ignore[no-untyped-call]  # share_memory_
            for part in (packed.codes, packed.scales, packed.zeros, packed.order):
                if part is not None:
                    part.share_memory_()  # type: ignore[no-untyped-call]
            self.assign(replace(packed))
        elif changed.dtype != sample.dtype:
            self.assign(replace(packed, plain_dtype=changed.dtype))

    def __getstate__(self) -> dict[str, Any]:
        # Copied and pickled plain: the copy packs it anew, perhaps for another CPU. Quantized weights lie everywhere
        # alike, and are copied as they are.
        packed = self.packed
        state = self.__dict__ | {"_packed": None, "_was_packed": packed.format is not PLAIN}
        if packed.is_quantized:
            state |= {"_parameters": {"weight": None}, "_was_packed": packed}
        elif packed.format is not PLAIN:
            state["_parameters"] = {"weight": nn.Parameter(packed.plain(), requires_grad=False)}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = state.pop("_was_packed")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if packed:
            self.assign(packed if isinstance(packed, PackedWeight) else self.weight.detach())


def _quantized(weight: nn.Parameter, shape: tuple[int, int]) -> PackedWeight | None:
    """The quantized weight whose codes are this parameter: another layer's, or one whose memory has moved."""
    packed: PackedWeight | None = getattr(weight, "packed", None)
    if packed is None or packed.shape != shape:
        return None
    if packed.codes.data_ptr() != weight.data_ptr():
        del weight.packed  # type: ignore[attr-defined]  # other memory was put into the parameter
        return None
    if not packed.holds(weight):
        packed = weight.packed = replace(packed)  # type: ignore[attr-defined]  # with the addresses of now
    return packed


def held_bytes(model: nn.Module) -> Counter[str]:
    """Bytes of a model's weights on this rank, by what they are stored as: int8, k4, bfloat16, ..."""
    found = Counter[str]()
    quantized = set()
    for layer in model.modules():
        if isinstance(layer, ParallelLinear) and isinstance(layer.packed.format, QuantizedFormat):
            found[layer.packed.format.kind] += layer.packed.nbytes
            quantized.add(id(layer.weight))
    for weight in model.parameters():
        if id(weight) not in quantized:
            found[str(weight.dtype).removeprefix("torch.")] += weight.nbytes
    return found


class ColumnParallelLinear(ParallelLinear, fairscale.ColumnParallelLinear):  # type: ignore[misc]
    """y = x W^T split along the output: (..., in) -> (..., out / ranks), or (..., out) when gathered."""

    bias = None

    def __init__(
        self, in_features: int, out_features: int, *, parallel: Parallel, gather_output: bool = False
    ) -> None:
        nn.Module.__init__(self)
        self.parallel = parallel
        self.in_features = in_features
        self.out_features = out_features
        self.gather_output = gather_output
        self.output_size_per_partition = divide_and_check_no_remainder(out_features, parallel.size)
        self.shape = (self.output_size_per_partition, in_features)
        self.weight = _parameter(*self.shape)

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        output = self.packed.linear(input_)
        return self.parallel.all_gather_last(output) if self.gather_output else output


class RowParallelLinear(ParallelLinear, fairscale.RowParallelLinear):  # type: ignore[misc]
    """y = sum over ranks of x_r W_r^T: (..., in / ranks) -> (..., out). The input is already split."""

    bias = None
    input_is_parallel = True

    def __init__(self, in_features: int, out_features: int, *, parallel: Parallel) -> None:
        nn.Module.__init__(self)
        self.parallel = parallel
        self.in_features = in_features
        self.out_features = out_features
        self.input_size_per_partition = divide_and_check_no_remainder(in_features, parallel.size)
        self.shape = (out_features, self.input_size_per_partition)
        self.weight = _parameter(*self.shape)

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        return self.parallel.all_reduce(self.packed.linear(input_))


# What `joint_product` stands for. It declines where this was patched.
_FORWARD = ColumnParallelLinear.forward


def joint_product(x: torch.Tensor, *layers: nn.Module) -> tuple[torch.Tensor, ...] | None:
    """What each of these layers gives for x, from one product; None if their forwards have to run.

    That takes plain weights that are neighbouring rows of one matrix, as they are loaded to a GPU, where starting a
    product can take longer than the product. Nothing is remembered: each call looks whether they still are, since any
    of them may have been replaced, moved or hooked.
    """
    matrix = None if hooked(layers) else _joined(layers)
    if matrix is None or matrix.dtype != x.dtype:
        return None
    heights = [layer.weight.shape[0] for layer in layers if isinstance(layer, ParallelLinear)]
    return torch.split(F.linear(x, matrix), heights, dim=-1)


def _joined(layers: Sequence[nn.Module]) -> torch.Tensor | None:
    """The matrix whose rows are those of all weights, in order; None if there is none."""
    rows, end, memory = 0, 0, 0
    for layer in layers:
        if type(layer) is not ColumnParallelLinear or ColumnParallelLinear.forward is not _FORWARD:
            return None
        weight = layer.weight
        try:
            start, whole = weight.data_ptr(), weight.untyped_storage().data_ptr()
        except RuntimeError:  # a tensor without memory of its own, as a compiler's
            return None
        # Two allocations can be neighbours, too: the memory must be one.
        if not start or (rows and (start != end or whole != memory)):
            return None
        alike = weight.shape == layer.shape and weight.dtype == layers[0].weight.dtype
        if not alike or layer.gather_output or weight.requires_grad or not weight.is_contiguous():
            return None
        if not weight.is_floating_point():  # codes of a quantized one
            return None
        rows, end, memory = rows + len(weight), start + weight.nbytes, whole
    first: torch.Tensor = layers[0].weight  # type: ignore[assignment]
    return first.detach().as_strided((rows, first.shape[1]), (first.shape[1], 1))
