"""fairscale's parallel layers, with an explicit group, weights assigned later, and this package's kernels.

Every weight is split as in fairscale: `ColumnParallelLinear` along the output (dim 0 of the weight),
`RowParallelLinear` and `ParallelEmbedding` along the input or embedding (dim 1). Four things differ from the
layers of fairscale 0.4.13:

* They take their group from a `Parallel` value instead of fairscale's global registry. One rank needs no
  process group, models of different sizes live side by side, and a host program that uses fairscale itself is
  not affected.
* They allocate through `torch.empty`, so the meta device allocates nothing; fairscale's constructors allocate
  and scatter a full master weight on every rank.
* They store weights in the format that kernels/linear.py chooses, and multiply through it.
* They are for inference only: collectives run in place and record no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fairscale.nn.model_parallel import layers as fairscale
from fairscale.nn.model_parallel.utils import divide_and_check_no_remainder
from torch import nn

from ..kernels.linear import format_of, linear, prepare, unpack
from .parallel import Parallel

__all__ = ["ColumnParallelLinear", "PackedWeight", "ParallelEmbedding", "RowParallelLinear"]


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
        return self.parallel.all_gather_last(F.embedding(input_, self.weight))


class PackedWeight(nn.Module):
    """A weight (rows, in) in the format that this device multiplies fastest; plain in a state dict."""

    weight: nn.Parameter
    rows: int
    shape: tuple[int, int]  # of the plain weight

    def assign(self, weight: torch.Tensor) -> None:
        """Take over a loaded weight. The caller drops its own reference, so it is in memory once."""
        self.weight = nn.Parameter(prepare(weight), requires_grad=False)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        weight = self.weight if keep_vars else self.weight.detach()
        destination[prefix + "weight"] = unpack(weight, self.rows)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        given = state_dict.get(prefix + "weight")
        packed = format_of(self.weight) is not None
        if packed and given is not None and given.shape == self.shape:
            # A packed weight cannot be copied into: assign a new one, of the old one's dtype and device.
            self.assign(given.detach().to(self.weight.device, self.weight.dtype, copy=True))
        else:
            super()._load_from_state_dict(state_dict, prefix, *rest)


class ColumnParallelLinear(PackedWeight, fairscale.ColumnParallelLinear):  # type: ignore[misc]
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
        self.rows = self.output_size_per_partition
        self.shape = (self.rows, in_features)
        self.weight = _parameter(*self.shape)

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        output = linear(input_, self.weight, self.rows)
        return self.parallel.all_gather_last(output) if self.gather_output else output


class RowParallelLinear(PackedWeight, fairscale.RowParallelLinear):  # type: ignore[misc]
    """y = sum over ranks of x_r W_r^T: (..., in / ranks) -> (..., out). The input is already split."""

    bias = None
    input_is_parallel = True

    def __init__(self, in_features: int, out_features: int, *, parallel: Parallel) -> None:
        nn.Module.__init__(self)
        self.parallel = parallel
        self.in_features = in_features
        self.out_features = out_features
        self.input_size_per_partition = divide_and_check_no_remainder(in_features, parallel.size)
        self.rows = out_features
        self.shape = (self.rows, self.input_size_per_partition)
        self.weight = _parameter(*self.shape)

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        return self.parallel.all_reduce(linear(input_, self.weight, self.rows))
