"""Laws of a layer whose weight is packed: to its users it is a module with a plain weight (out, in)."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from llama.distributed.layers import ColumnParallelLinear
from llama.distributed.parallel import Parallel
from llama.kernels import native
from llama.kernels.weights import PLAIN

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZE = (33, 48)


@pytest.fixture(autouse=True, params=["with kernels", "without"])
def _kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without":
        monkeypatch.setattr(native, "kernels", lambda: None)


def make(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(weight: torch.Tensor) -> ColumnParallelLinear:
    with torch.device("meta"):
        made = ColumnParallelLinear(SIZE[1], SIZE[0], parallel=Parallel())
    made.assign(weight)
    return made


def check(module: ColumnParallelLinear, weight: torch.Tensor) -> None:
    """It holds this weight, and multiplies by it."""
    assert torch.equal(module.state_dict()["weight"], weight)
    x = make(3, SIZE[1], seed=1).to(weight.dtype)
    exact = x.double() @ weight.double().T
    assert ((module(x).double() - exact).abs() <= 0.02 * x.double().abs() @ weight.double().abs().T).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cast_is_of_the_plain_weight(dtype: torch.dtype) -> None:
    for before in DTYPES:
        weight = make(*SIZE).to(before)
        module = layer(weight).to(dtype)
        check(module, weight.to(dtype))
        if native.kernels() is not None:
            assert module.packed.format is not PLAIN
    check(layer(make(*SIZE)).half().float(), make(*SIZE).half().float())


def test_a_weight_that_goes_nowhere_is_not_packed_again() -> None:
    module = layer(make(*SIZE))
    before = module.weight
    assert module.to("cpu", torch.float32).weight is before


def test_another_device_gets_the_plain_shape() -> None:
    module = layer(make(*SIZE)).to("meta")
    assert module.weight.shape == SIZE
    assert module.weight.device.type == "meta"
    module.assign(make(*SIZE, seed=2))
    check(module, make(*SIZE, seed=2))


def test_what_was_computed_from_the_weight_can_be_assigned() -> None:
    """torch keeps oneDNN's layout when it multiplies such a tensor by a number."""
    module = layer(make(*SIZE))
    if module.weight.shape == SIZE:
        module.assign(module.weight.detach() * 2)
        check(module, make(*SIZE) * 2)


def test_memory_that_is_shared_in_place_is_used_from_there() -> None:
    module = layer(make(*SIZE))
    if not module.weight.is_mkldnn:  # whose tensors cannot be shared
        module.share_memory()
        assert module.weight.is_shared()
    check(module, make(*SIZE))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_is_packed_for_itself(
    copied: Callable[[ColumnParallelLinear], ColumnParallelLinear], dtype: torch.dtype
) -> None:
    weight, other = make(*SIZE).to(dtype), make(*SIZE, seed=2).to(dtype)
    module = layer(weight)
    again = copied(module)
    assert type(again.packed.format) is type(module.packed.format)
    module.assign(other)
    check(again, weight)
    check(module, other)


def test_a_pickle_can_be_read_where_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pickle.dumps(layer(make(*SIZE)))
    monkeypatch.setattr(native, "kernels", lambda: None)
    check(pickle.loads(data), make(*SIZE))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_state_dict_is_taken_in_the_modules_dtype(dtype: torch.dtype) -> None:
    module = layer(make(*SIZE).to(dtype))
    module.load_state_dict({"weight": make(*SIZE, seed=2)})
    check(module, make(*SIZE, seed=2).to(dtype))
    with pytest.raises(RuntimeError, match="size mismatch"):
        module.load_state_dict({"weight": make(SIZE[0], 8)})
    check(module, make(*SIZE, seed=2).to(dtype))


def test_a_parameter_that_is_put_in_its_place_counts() -> None:
    """Plain, or another layer's packed one."""
    module, other = layer(make(*SIZE)), layer(make(*SIZE, seed=2))
    module.weight = nn.Parameter(make(*SIZE, seed=3), requires_grad=False)
    check(module, make(*SIZE, seed=3))
    module.weight = other.weight
    check(module, make(*SIZE, seed=2))
    fresh = ColumnParallelLinear(SIZE[1], SIZE[0], parallel=Parallel())
    fresh.weight = other.weight
    check(fresh, make(*SIZE, seed=2))


def test_memory_that_is_put_in_its_place_counts() -> None:
    """The kernel knows an address; reading there afterwards would be of another weight, or of nobody's."""
    module, other = layer(make(*SIZE)), layer(make(*SIZE, seed=2))
    if module.weight.is_mkldnn:  # torch refuses it
        return
    module(make(1, SIZE[1]))
    module.weight.data = other.weight.data.clone()
    check(module, make(*SIZE, seed=2))
    module.weight.data = make(*SIZE, seed=3)
    check(module, make(*SIZE, seed=3))
    module.weight.data = other.weight.data.clone()
    check(module, make(*SIZE, seed=2))


def test_an_edit_in_place_counts() -> None:
    module = layer(make(*SIZE))
    if not module.weight.is_mkldnn:
        module.weight.mul_(2)
        check(module, 2 * make(*SIZE))


def test_memory_that_was_freed_is_an_error_until_it_is_there_again() -> None:
    """As programs do that load a weight only while it is used."""
    module = layer(make(*SIZE))
    if module.weight.is_mkldnn:
        return
    storage, kept = module.weight.untyped_storage(), module.weight.clone()
    storage.resize_(0)
    with pytest.raises(RuntimeError, match="storage"):
        module(make(3, SIZE[1]))
    storage.resize_(kept.nbytes)
    module.weight.copy_(kept)
    check(module, make(*SIZE))
