"""Laws of weights that lie as one matrix on a GPU: one product for each group, and nothing else can tell.

Whatever is done to a model, its logits are those of a model on the CPU to which the same was done.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from pretended_gpu import Gpu, GpuTensor, on_the_cpu
from tiny_llama import GQA
from torch import nn

from llama import Llama
from llama.distributed.layers import ColumnParallelLinear
from llama.model import Transformer

LAYERS = GQA["n_layers"]
IDS = [[5, 9, 40, 7, 30], [11, 4, 8, 8, 1]]
# Products: with the groups joined, with each weight by itself, and of the output.
JOINED, APART = 4 * LAYERS + 1, 7 * LAYERS + 1


@pytest.fixture
def models(gpu: Gpu, tiny_checkpoint: Path) -> Iterator[tuple[Transformer, Transformer]]:
    """The same model on the GPU and on the CPU."""
    build = {"max_seq_len": 64, "max_batch_size": 2, "dtype": "float32"}
    on_gpu = Llama.build(tiny_checkpoint, device="cuda", **build).model
    with on_the_cpu():
        on_cpu = Llama.build(tiny_checkpoint, device="cpu", **build).model
    return on_gpu, on_cpu


def products(gpu: Gpu, model: Transformer) -> int:
    """Run the model -> how many products that took."""
    gpu.forget()
    model(torch.tensor(IDS).to(model.device))
    return sum(
        n
        for (kind, name, _), n in gpu.places.items()
        if kind == "launch" and name in ("mm.default", "addmm.default")
    )


def logits(model: Transformer) -> torch.Tensor:
    return model(torch.tensor(IDS).to(model.device)).cpu()


def same(models: tuple[Transformer, Transformer]) -> None:
    found = logits(models[0])
    with on_the_cpu():
        expected = logits(models[1])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_loaded_model_takes_one_product_for_each_group(gpu, models):
    assert products(gpu, models[0]) == JOINED
    same(models)


def _double(model: Transformer) -> None:
    model.layers[0].attention.wk.weight.mul_(2)


def _give_another(model: Transformer) -> None:
    weight = model.layers[0].attention.wk.weight
    model.layers[0].attention.wk.weight = nn.Parameter(weight.detach() * 2, requires_grad=False)


def _assign(model: Transformer) -> None:
    layer = model.layers[0].feed_forward.w3
    layer.assign(layer.weight.detach() * 2)


def _new_memory(model: Transformer) -> None:
    weight = model.layers[1].attention.wq.weight
    weight.data = weight.data * 2


def _exchange(model: Transformer) -> None:
    """Neighbours still, but in another order."""
    attention = model.layers[0].attention
    attention.wk.weight, attention.wv.weight = attention.wv.weight, attention.wk.weight


def _hook(model: Transformer) -> None:
    model.layers[0].attention.wq.register_forward_hook(lambda module, args, output: output * 2)


def _own_forward(model: Transformer) -> None:
    layer = model.layers[0].feed_forward.w1
    forward = layer.forward
    layer.forward = lambda x: forward(x) * 2


def _own_class(model: Transformer) -> None:
    class Doubling(ColumnParallelLinear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    model.layers[0].feed_forward.w3.__class__ = Doubling


def _wrapped(model: Transformer) -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * 2

    attention = model.layers[0].attention
    attention.wv = Wrapper(attention.wv)


def _load(model: Transformer) -> None:
    state = {name: value * 0.5 for name, value in model.state_dict().items()}
    model.load_state_dict(state)


# What is done to a model, and whether all groups are still joined then.
CHANGES: dict[str, tuple[Callable[[Transformer], None], bool]] = {
    "one weight is changed in place": (_double, True),
    "a state dict is loaded": (_load, True),
    "one gets another parameter": (_give_another, False),
    "one is assigned": (_assign, False),
    "one gets other memory": (_new_memory, False),
    "two are exchanged": (_exchange, False),
    "one has a hook": (_hook, False),
    "one has a forward of its own": (_own_forward, False),
    "one is of another class": (_own_class, False),
    "one is wrapped": (_wrapped, False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_is_done_to_a_weight_counts(gpu, models, name):
    change, joined = CHANGES[name]
    before = logits(models[0])
    change(models[0])
    with on_the_cpu():
        change(models[1])
    same(models)
    assert not torch.allclose(logits(models[0]), before, atol=1e-2)
    assert (products(gpu, models[0]) == JOINED) == joined


def test_a_forward_that_was_patched_is_called(gpu, models, monkeypatch):
    forward = ColumnParallelLinear.forward
    monkeypatch.setattr(ColumnParallelLinear, "forward", lambda layer, x: forward(layer, x) * 2)
    same(models)
    assert products(gpu, models[0]) == APART


def test_a_global_hook_sees_every_layer(gpu, models):
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(module))
    try:
        assert products(gpu, models[0]) == APART
    finally:
        handle.remove()
    assert sum(isinstance(module, ColumnParallelLinear) for module in seen) == 5 * LAYERS + 1


@pytest.mark.usefixtures("guard")  # those of a real device are torch's own
def test_weights_that_tell_no_address_are_multiplied_by_themselves(gpu, models, monkeypatch):
    def refuse(tensor: torch.Tensor) -> torch.UntypedStorage:
        raise NotImplementedError("this tensor has no storage")

    monkeypatch.setattr(GpuTensor, "untyped_storage", refuse)
    assert products(gpu, models[0]) == APART
    same(models)


def test_copies_are_models_of_their_own(gpu, models):
    model, original = models[0], logits(models[0])
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    fresh = copy.deepcopy(model)
    model.layers[0].attention.wk.weight.mul_(3)
    torch.testing.assert_close(logits(fresh), original, atol=1e-4, rtol=1e-4)
    file.seek(0)
    model.load_state_dict(torch.load(file, weights_only=False))
    assert torch.equal(logits(model), original)
    assert products(gpu, fresh) == APART  # a copy's weights are copied one by one
    assert products(gpu, model) == JOINED


def test_a_model_that_is_moved_or_cast(two_gpus, models):
    model, original = models[0], logits(models[0])
    model.to("cuda:1").to(torch.float64)
    torch.testing.assert_close(logits(model), original, atol=1e-4, rtol=1e-4)
    model.to("cpu").float()
    assert torch.equal(
        model.layers[0].attention.wk.weight, models[1].state_dict()["layers.0.attention.wk.weight"]
    )
    torch.testing.assert_close(logits(model), original, atol=1e-4, rtol=1e-4)


def test_memory_is_taken_once(gpu, models):
    storages = {w.untyped_storage().data_ptr(): w.untyped_storage().nbytes() for w in models[0].parameters()}
    assert sum(storages.values()) == sum(weight.nbytes for weight in models[0].parameters())
    assert len(storages) == 3 + LAYERS * 6
