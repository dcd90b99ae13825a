"""A model that was changed answers as one that was always so: nothing computed before is used again."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from engine_requests import kept
from tiny_llama import tiny_llama, tiny_model
from tiny_tokenizers import tiny_tokenizer
from torch import nn

from llama import Llama
from llama.engine import Engine, Request
from llama.engine.model_watch import ModelWatch
from llama.model import FeedForward, Transformer
from llama.sampling import GREEDY

TOKENIZER = tiny_tokenizer()
PROMPT = tuple(1 + i * 7 % 400 for i in range(40))


def twice(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    return 2 * output


class Doubled(nn.Module):
    """A module of another kind around one that was there."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("factor", torch.tensor(2.0))
        self.scale = torch.tensor(1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.factor * self.scale


def edited(model: Transformer) -> None:
    with torch.no_grad():
        model.layers[0].attention_norm.weight.mul_(3)


def edited_in_inference_mode(model: Transformer) -> None:
    with torch.inference_mode():
        model.layers[0].attention_norm.weight.mul_(3)


def loaded(model: Transformer) -> None:
    state = model.state_dict()
    model.load_state_dict({name: value.flip(0) for name, value in state.items()})


def assigned(model: Transformer) -> None:
    norm = model.layers[0].attention_norm
    norm.weight = nn.Parameter(3 * norm.weight, requires_grad=False)


def other_memory(model: Transformer) -> None:
    norm = model.layers[0].attention_norm
    norm.weight.data = 3 * norm.weight.data


def hook(model: Transformer) -> None:
    model.layers[1].feed_forward.register_forward_hook(twice)


def early_hook(model: Transformer) -> None:
    model.layers[1].feed_forward.w1.register_forward_pre_hook(lambda module, args: (2 * args[0],))


def other_kind(model: Transformer) -> None:
    model.layers[0].feed_forward = Doubled(model.layers[0].feed_forward)


def same_kind(model: Transformer) -> None:
    old = model.layers[0].feed_forward
    new = FeedForward(model.params.dim, model.params.ffn_dim, model.parallel)
    for ours, theirs in ((new.w1, old.w3), (new.w3, old.w1), (new.w2, old.w2)):
        ours.weight = theirs.weight
    model.layers[0].feed_forward = new


def own_forward(model: Transformer) -> None:
    ffn = model.layers[0].feed_forward
    ffn.forward = lambda x: 2 * type(ffn).forward(ffn, x)


def attribute(model: Transformer) -> None:
    model.layers[0].attention_norm.eps = 5.0


def theta(model: Transformer) -> None:
    model.params.rope_theta = 50.0


CHANGES = [
    *(edited, edited_in_inference_mode, loaded, assigned, other_memory, hook, early_hook),
    *(other_kind, same_kind, own_forward, attribute, theta),
]


def ask(engine: Engine, **more: Any) -> tuple[int, list[float], list[int]]:
    """(tokens that were reused, scores, ids) of a short continuation."""
    sequence = finish(engine, engine.add(Request(PROMPT, 4, GREEDY, **more)))
    return sequence.reused, [score.logprob for score in sequence.scores], sequence.output


def finish(engine: Engine, request_id: int) -> Any:
    while True:
        for delta in engine.step():
            if delta.key[0] == request_id and delta.finish_reason is not None:
                return delta.sequence


def right(model: Transformer) -> list[float]:
    """The scores that this model gives without any prefix."""
    return ask(Engine(model, TOKENIZER, prefix_reuse=False))[1]


def as_if_always_so(engine: Engine) -> None:
    """The next answer is of the model as it is, computed anew; the one after it reuses that."""
    reused, scores, _ = ask(engine)
    assert reused == 0
    assert scores == pytest.approx(right(engine.model), abs=1e-4)
    assert ask(engine)[0] > 0


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_counts(change: Callable[[Transformer], None]) -> None:
    model = tiny_model()
    engine = Engine(model, TOKENIZER)
    ask(engine)
    reused, before, _ = ask(engine)
    assert reused > 0
    change(model)
    assert before != pytest.approx(right(model), abs=1e-2), "a change that shows"
    as_if_always_so(engine)


def test_what_was_put_in_counts_its_own_changes() -> None:
    """A buffer, and a tensor that is a plain attribute, of a module of the host's."""
    model = tiny_model()
    other_kind(model)
    engine, added = Engine(model, TOKENIZER), model.layers[0].feed_forward
    ask(engine)
    for tensor in (added.factor, added.scale):
        tensor.mul_(1.5)
        as_if_always_so(engine)


def test_a_hook_that_goes_counts() -> None:
    model = tiny_model()
    handle = model.layers[1].feed_forward.register_forward_hook(twice)
    engine = Engine(model, TOKENIZER)
    ask(engine)
    handle.remove()
    as_if_always_so(engine)


def test_a_hook_on_all_modules_counts() -> None:
    engine = Engine(tiny_model(), TOKENIZER)
    ask(engine)
    with everywhere():
        as_if_always_so(engine)
    as_if_always_so(engine)


@contextlib.contextmanager
def everywhere() -> Iterator[None]:
    def double(module: nn.Module, args: Any, output: Any) -> Any:
        return 2 * output if isinstance(module, FeedForward) else output

    handle = nn.modules.module.register_module_forward_hook(double)
    try:
        yield
    finally:
        handle.remove()


def test_a_forward_of_a_class_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, plain = Engine(tiny_model(), TOKENIZER), FeedForward.forward
    ask(engine)
    monkeypatch.setattr(FeedForward, "forward", lambda self, x: 2 * plain(self, x))
    as_if_always_so(engine)


def test_an_unseen_change_counts_once_it_is_told() -> None:
    llama = tiny_llama()
    text = "def return self value list " * 6

    def scores(of: Llama) -> list[float]:
        return of.text_completion([text], temperature=0, max_gen_len=4, logprobs=True)[0]["logprobs"]

    before = scores(llama)
    llama.model.layers[0].attention_norm.weight.data.mul_(3)
    llama.forget_prefixes()
    wanted = scores(Llama(llama.model, llama.tokenizer, prefix_reuse=False))
    assert before != pytest.approx(wanted, abs=1e-2)
    assert scores(llama) == pytest.approx(wanted, abs=1e-4)


def test_nothing_is_dropped_without_a_change() -> None:
    """Not by what other models do, nor by settings that are made again."""
    model, other = tiny_model(), tiny_model()
    engine = Engine(model, TOKENIZER)
    ask(engine)
    edited(other)
    hook(other)
    model.eval().requires_grad_(False)
    with torch.no_grad():
        model.state_dict()
        model(torch.tensor([[1, 2, 3]]), 0)
    assert ask(engine)[0] > 0


def test_what_runs_when_the_model_changes_is_for_nobody_else() -> None:
    """Neither while it runs nor after it; and its own end is of the model that is there then."""
    model = tiny_model()
    engine = Engine(model, TOKENIZER)
    under_way = engine.add(Request(PROMPT, 30, GREEDY))
    engine.step()
    edited(model)
    as_if_always_so(engine)
    sequence = finish(engine, under_way)
    assert len(sequence.output) == 30
    follow = (*PROMPT, *sequence.output, 5)
    assert finish(engine, engine.add(Request(follow, 1, GREEDY))).reused <= len(PROMPT) + 4


def test_nobody_waits_for_a_prefix_of_another_model() -> None:
    """A request that waits for what an older one computes, when the model changes, goes on by itself."""
    model = tiny_model()
    engine = Engine(model, TOKENIZER, step_tokens=8, block=4)
    older = engine.add(Request(PROMPT, 2, GREEDY))
    younger = engine.add(Request((*PROMPT, 3), 2, GREEDY))
    engine.step()
    assert engine.scheduler.running[1].leader is engine.scheduler.running[0]
    edited(model)
    third = engine.add(Request((9, 8, 7), 1, GREEDY))
    engine.step()
    assert engine.scheduler.running[1].leader is None
    sequence = finish(engine, younger)
    assert sequence.reused == 0
    for request_id in (older, third):
        engine.cancel(request_id)
    wanted = finish(alone := Engine(model, TOKENIZER), alone.add(Request((*PROMPT, 3), 2, GREEDY)))
    assert [s.logprob for s in sequence.scores] == pytest.approx([s.logprob for s in wanted.scores], abs=1e-4)


def test_what_was_preempted_is_computed_anew_and_of_use_again() -> None:
    """Memory is short: the younger is preempted after the change and begins again with the new model."""
    model = tiny_model()
    engine = Engine(model, TOKENIZER, cache_tokens=200, retained_tokens=200, block=4, speculate=False)
    older, younger = (engine.add(Request(PROMPT[i : i + 30], 90, GREEDY)) for i in (0, 5))
    engine.step()
    edited(model)
    third = engine.add(Request((9, 8, 7), 1, GREEDY))
    finish(engine, third)
    assert [sequence.stale for sequence in engine.scheduler.running] == [True, True]
    finish(engine, older)
    last = finish(engine, younger)
    assert engine.scheduler.preemptions
    prefixes = engine.scheduler.prefixes
    assert prefixes is not None
    assert [tokens[:30] for tokens in kept(engine)] == [last.tokens[:30]]
    assert engine.blocks.used == prefixes.unheld


def test_a_hook_that_came_and_went_during_a_stream_counts() -> None:
    """No request begins between: what it computed with the hook is not what the next one finds."""
    model = tiny_model()
    engine = Engine(model, TOKENIZER, speculate=False)
    ask(engine)
    stream = engine.add(Request(tuple(reversed(PROMPT)), 30, GREEDY))
    for _ in range(3):
        engine.step()
    handle = model.layers[0].feed_forward.register_forward_hook(twice)
    for _ in range(20):
        engine.step()
    handle.remove()
    written = finish(engine, stream).tokens
    sequence = finish(engine, engine.add(Request((*written, 3), 2, GREEDY)))
    assert sequence.reused == 0


def test_samples_of_a_stale_prompt_are_stale() -> None:
    model = tiny_model()
    engine = Engine(model, TOKENIZER, step_tokens=8, block=4)
    engine.add(Request(PROMPT, 12, GREEDY, n=2))
    engine.step()
    edited(model)
    finish(engine, engine.add(Request((9, 8, 7), 1, GREEDY)))
    while engine.unfinished:
        engine.step()
    as_if_always_so(engine)


def test_no_weight_is_kept_in_memory() -> None:
    """A weight that was replaced is gone at once, though the watch has seen it."""
    model = tiny_model()
    watch = ModelWatch(model)
    watch.look()
    weight = weakref.ref(model.layers[0].attention_norm.weight)
    assigned(model)
    assert weight() is None
    watch.look()
    assert watch.changes == 1


def test_weights_that_were_loaded_within_inference_mode_count_their_edits(tiny_checkpoint: Any) -> None:
    with torch.inference_mode():
        llama = Llama.build(tiny_checkpoint, None, 128, 4, device="cpu", dtype="float32")
    engine = llama.engine
    ask(engine)
    edited(llama.model)
    as_if_always_so(engine)
