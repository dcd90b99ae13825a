"""Fused layers give what the modules give, for any mix of few rows, and notice replaced weights."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from compiled_levels import use
from fused_models import PARAMS, VOCAB, give, made, rms, steps
from pools import Held
from tiny_models import random_weights

from llama.distributed.parallel import Parallel
from llama.errors import ConfigError
from llama.kernels import fused
from llama.model import FeedForward, ModelArgs, Transformer

pytestmark = pytest.mark.usefixtures("level")


def test_they_are_taken_for_few_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(PARAMS)
    taken: list[int] = []
    run = fused.FusedLayers.run
    monkeypatch.setattr(
        fused.FusedLayers, "run", lambda self, x, *rest: (taken.append(x.shape[0]), run(self, x, *rest))[1]
    )
    most = fused._MAX_ROWS
    for count in (1, most, most + 1):
        Held(model, [0]).run(torch.zeros(count, dtype=torch.long), [count])
    assert taken == [1, most]


def test_parts_with_their_sums_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with several ranks, whose sums stand between the parts."""
    whole = steps(made(PARAMS), [5, 9], [2, 1])
    model, summed = made(PARAMS), []
    monkeypatch.setattr(model._fused, "_all_reduce", lambda x: (summed.append(x.shape), x)[1])
    parts = steps(model, [5, 9], [2, 1])
    # Both prefills and both steps are of few rows.
    assert len(summed) == 4 * 2 * PARAMS["n_layers"]
    for a, b in zip(parts, whole, strict=True):
        assert rms(a - b) < 0.02


@pytest.mark.parametrize("size", [1, 2])
def test_ranks_that_share_a_model_sum(size: int) -> None:
    with torch.device("meta"):
        model = Transformer(ModelArgs(**PARAMS, vocab_size=100), parallel=Parallel(size=size))
    assert (model._fused._all_reduce is None) == (size == 1)
    assert model._fused._shape.heads == PARAMS["n_heads"] // size


def test_a_replaced_weight_counts() -> None:
    """Assigned anew, or loaded from a state dict."""
    model, other = made(PARAMS, 0), made(PARAMS, 1)
    ids = torch.tensor([5])

    def hidden(of: Transformer) -> torch.Tensor:
        return Held(of, [0]).run(ids, [1])

    first, wanted = hidden(model), hidden(other)
    assert not torch.equal(first, wanted)
    model.load_state_dict(other.state_dict())
    assert torch.equal(hidden(model), wanted)
    give(model, random_weights(PARAMS, VOCAB, 0))
    assert torch.equal(hidden(model), first)
    norm = model.layers[0].attention_norm.weight
    kept, norm.data = norm.data, torch.zeros_like(norm)
    assert not torch.equal(hidden(model), first)
    norm.data = kept
    assert torch.equal(hidden(model), first)


def test_a_model_that_was_cast_there_and_back_still_runs() -> None:
    """A cast keeps the parameter and gives it other memory."""
    model = made(PARAMS)
    ids = torch.randint(0, VOCAB, (4,), generator=torch.Generator().manual_seed(0))
    first = Held(model, [0]).run(ids, [4])
    model.load_state_dict(model.float().bfloat16().state_dict())
    again = Held(model, [0]).run(ids, [4])
    assert rms(again - first) < 0.02


def test_weights_of_another_dtype_count() -> None:
    model = made(PARAMS)
    ids = torch.tensor([5])
    Held(model, [0]).run(ids, [1])
    give(model, random_weights(PARAMS, VOCAB), torch.float32)
    hidden = Held(model, [0]).run(ids, [1])
    exact = made(PARAMS, dtype=torch.float32)
    assert torch.equal(hidden, Held(exact, [0]).run(ids, [1]))


def taken_as_modules(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """A step of few rows as the model takes it, and as its modules do, both behind what its modules computed."""
    ids = torch.tensor([5, 6, 7])
    with monkeypatch.context() as patch:
        patch.setattr(fused, "_MAX_ROWS", 0)
        begun = Held(model, [9])
        wanted = begun.copy().run(ids, [3])
    return begun.run(ids, [3]), wanted


HOOKED = [
    "",
    ".attention",
    ".feed_forward",
    ".attention_norm",
    ".ffn_norm",
    ".attention.wk",
    ".feed_forward.w2",
]


@pytest.mark.parametrize("name", HOOKED)
@pytest.mark.parametrize("kind", ["after", "before", "own forward"])
def test_a_step_of_few_rows_honours_hooks(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(PARAMS)
    first, _ = taken_as_modules(model, monkeypatch)
    module: Any = model.get_submodule(f"layers.1{name}")
    if kind == "after":
        handle = module.register_forward_hook(lambda module, args, output: 2 * output)
    elif kind == "before":
        handle = module.register_forward_pre_hook(lambda module, args: (args[0].flip(-1), *args[1:]))
    else:
        module.forward = lambda *args: 2 * type(module).forward(module, *args)
    few, wanted = taken_as_modules(model, monkeypatch)
    assert torch.equal(few, wanted)
    assert not torch.equal(few, first)
    if kind == "own forward":
        del module.forward
    else:
        handle.remove()
    assert torch.equal(taken_as_modules(model, monkeypatch)[0], first)


def test_a_step_of_few_rows_honours_hooks_on_all_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(PARAMS)
    seen: list[torch.nn.Module] = []
    for register in (
        lambda: torch.nn.modules.module.register_module_forward_hook(lambda m, args, out: seen.append(m)),
        lambda: torch.nn.modules.module.register_module_forward_pre_hook(lambda m, args: seen.append(m)),
    ):
        seen.clear()
        handle = register()
        try:
            Held(model, [0]).run(torch.tensor([5]), [1])
        finally:
            handle.remove()
        assert all(layer in seen for layer in model.layers)


@pytest.mark.parametrize("name", ["tok_embeddings", "layers.0.attention.wq", "layers.1.attention.wk"])
def test_what_a_hook_has_kept_stays_as_it_was(name: str) -> None:
    """Nothing computes in place with what a module returned."""
    model = made(PARAMS)
    kept: list[torch.Tensor] = []
    model.get_submodule(name).register_forward_hook(lambda module, args, output: kept.append(output))
    model.get_submodule(name).register_forward_hook(lambda module, args, output: kept.append(output.clone()))
    Held(model, [0]).run(torch.tensor([5, 6, 7]), [3])
    assert torch.equal(*kept)


class Negative(FeedForward):
    """Of another kind, though its modules are the same."""

    def forward(self, x_TC: torch.Tensor) -> torch.Tensor:
        return -super().forward(x_TC)


def other_kind(model: Transformer) -> None:
    old: Any = model.layers[1].feed_forward
    old.__class__ = Negative


def other_leaf(model: Transformer) -> None:
    model.layers[1].feed_forward.w3 = torch.nn.Linear(256, model.params.ffn_dim, dtype=torch.bfloat16)


def other_order(model: Transformer) -> None:
    model.layers = torch.nn.ModuleList([model.layers[2], model.layers[0], model.layers[1]])


def fewer(model: Transformer) -> None:
    model.layers = model.layers[:2]


def smaller(model: Transformer) -> None:
    """A kernel that took it for one of the usual size would read what is behind its weights."""
    old: Any = model.layers[1].feed_forward
    new: Any = FeedForward(model.params.dim, 16, model.parallel)
    for name in ("w1", "w2", "w3"):
        plain = old.get_submodule(name).state_dict()["weight"]
        new.get_submodule(name).assign(plain[:, :16] if name == "w2" else plain[:16])
    model.layers[1].feed_forward = new


def eps(model: Transformer) -> None:
    model.layers[1].ffn_norm.eps = 4.0


def with_gaps(model: Transformer) -> None:
    norm: Any = model.layers[1].ffn_norm
    norm.weight = torch.nn.Parameter((3 * norm.weight).repeat_interleave(2)[::2], requires_grad=False)


def not_packed(model: Transformer) -> None:
    leaf: Any = model.layers[1].feed_forward.w3
    leaf.weight = torch.nn.Parameter(3 * leaf.packed.plain(), requires_grad=False)


def theta(model: Transformer) -> None:
    model.params.rope_theta = 3.0


@pytest.mark.parametrize(
    "change", [other_kind, other_leaf, other_order, fewer, smaller, eps, with_gaps, not_packed]
)
def test_a_step_of_few_rows_is_of_the_modules_that_are_there(
    change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(PARAMS)
    first, _ = taken_as_modules(model, monkeypatch)
    change(model)
    few, wanted = taken_as_modules(model, monkeypatch)
    assert torch.equal(few, wanted)
    assert not torch.equal(few, first)


def test_a_norm_of_another_dtype_is_left_to_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(PARAMS)
    norm: Any = model.layers[-1].ffn_norm  # what follows it is in float32 too
    norm.weight = torch.nn.Parameter(3 * norm.weight.float(), requires_grad=False)
    few, wanted = taken_as_modules(model, monkeypatch)
    assert torch.equal(few, wanted)


def test_a_step_of_few_rows_honours_a_patched_class(monkeypatch: pytest.MonkeyPatch) -> None:
    model, plain = made(PARAMS), FeedForward.forward
    monkeypatch.setattr(FeedForward, "forward", lambda self, x: -plain(self, x))
    few, wanted = taken_as_modules(model, monkeypatch)
    assert torch.equal(few, wanted)


def test_a_step_of_few_rows_has_the_rotation_that_is_asked_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(PARAMS)
    first, _ = taken_as_modules(model, monkeypatch)
    theta(model)
    few, wanted = taken_as_modules(model, monkeypatch)
    assert rms(few - wanted) < 0.1 * rms(few - first)


def test_a_module_in_the_place_of_another_is_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same kind and size, it is taken by the fused step too."""
    model, other = made(PARAMS, 0), made(PARAMS, 1)
    taken_as_modules(model, monkeypatch)
    for i in range(PARAMS["n_layers"]):
        model.layers[i] = other.layers[i]
    model.tok_embeddings, model.norm = other.tok_embeddings, other.norm
    assert torch.equal(*(taken_as_modules(each, monkeypatch)[0] for each in (model, other)))


def test_what_is_not_finite_stays_so() -> None:
    model = made(PARAMS)
    weights = random_weights(PARAMS, VOCAB)
    weights["layers.1.feed_forward.w1.weight"][3] = torch.nan
    give(model, weights)
    hidden = Held(model, [0]).run(torch.tensor([5]), [1])
    assert hidden.isnan().any()


def test_one_model_in_two_threads() -> None:
    """Each with caches of its own; none sees the other's work space."""
    model = made(PARAMS)
    ids = torch.randint(0, VOCAB, (40,), generator=torch.Generator().manual_seed(5))

    def run(rows: int) -> torch.Tensor:
        torch.set_num_threads(1)
        held = Held(model, [0])
        return torch.cat([held.run(ids[i : i + rows], [rows]) for i in range(0, 40, rows)])

    wanted = {rows: run(rows) for rows in (1, 4)}
    with ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            futures = {rows: pool.submit(run, rows) for rows in (1, 4)}
            for rows, future in futures.items():
                assert torch.equal(future.result(), wanted[rows])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_model_computes_with_its_own_weights(copied: Callable[[Transformer], Transformer]):
    model = made(PARAMS)
    tokens = torch.tensor([[5, 6, 7]])
    before = model(tokens)
    other = copied(model)
    assert torch.equal(other(tokens), before)
    give(other, random_weights(PARAMS, VOCAB, 1))
    assert torch.equal(other(tokens), made(PARAMS, seed=1)(tokens))
    assert torch.equal(model(tokens), before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_model_begins_without_what_the_original_has_computed(
    copied: Callable[[Transformer], Transformer],
) -> None:
    """It does not write where the original's keys and values lie."""
    model = made(PARAMS)
    model(torch.tensor([[5, 6, 7]]))
    with pytest.raises(ConfigError, match="run the positions before it first"):
        copied(model)(torch.tensor([[8]]), 3)
    assert torch.equal(model(torch.tensor([[8]]), 3), made(PARAMS)(torch.tensor([[5, 6, 7, 8]]))[:, 3:])


def test_kernels_of_several_levels_at_once() -> None:
    """A model runs with those that its weights were packed by, whichever are in use by now."""
    model, ids = made(PARAMS), torch.tensor([5])
    wanted = Held(model, [0]).run(ids, [1])
    with pytest.MonkeyPatch.context() as patch:
        use("plain", patch)
        assert torch.equal(Held(model, [0]).run(ids, [1]), wanted)
        assert model._fused._layers is not None
