"""Laws of the local generator: its answers are those of the library's calls, however they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import ROOT
from tiny_llama import tiny_llama
from tiny_models import SHAPE, hugging_face_twin, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer
from toy_task import toy_problems

from llama.checkpoint import open_checkpoint
from llama.checkpoint.fingerprint import fingerprint
from llama.errors import UnsupportedError
from llama.evaluation.generator import PROMPT_TOO_LONG, UNSAFE_TAG, ModelInfo, SampleRequest, seed_of
from llama.evaluation.local import LocalGenerator, model_info
from llama.evaluation.problem import Answer, Order
from llama.evaluation.ranks import Ranks
from llama.evaluation.settings import Settings
from llama.generation import Llama
from llama.sizing.args import ModelArgs
from llama.sizing.family import MEMBERS, args_of, variants_of

# No value is a default of the library or of a run.
SAMPLED = Settings("toy", n=5, temperature=1.1, top_p=0.97, max_gen_len=12)


def answers(
    llama: Llama, requests: Sequence[SampleRequest], settings: Settings = SAMPLED
) -> dict[Any, Answer]:
    generator = LocalGenerator(llama, Ranks(llama.model.parallel, llama.model.device, messages=1))
    found = list(generator.generate(requests, settings))
    assert len(found) == sum(request.count for request in requests)
    return {(each.problem.task_id, each.order, each.sample): each for each in found}


def sample_requests(order: Order, suffix: str | None = None) -> list[SampleRequest]:
    # A letter that some samples come to.
    problems = [replace(each, stops=("a",)) for each in toy_problems(suffix=suffix)]
    return [SampleRequest(each, order, seed_of(0, each.task_id, order), 0, 5) for each in problems]


def library(llama: Llama, request: SampleRequest) -> list[tuple[str, str]]:
    """The same samples by the call that a user would make."""
    given: dict[str, Any] = {
        "temperature": 1.1,
        "top_p": 0.97,
        "max_gen_len": 12,
        "seed": request.seed,
        "n": request.count,
    }
    problem = request.problem
    if request.order is Order.PLAIN:
        found: Any = llama.text_completion([problem.prompt], stop=problem.stops, **given)
    elif request.order is Order.CHAT:
        found = llama.chat_completion([[{"role": "user", "content": problem.question}]], **given)
        return [(each["generation"]["content"], each["finish_reason"]) for each in found]
    else:
        spm = request.order is Order.SPM
        pair = ([problem.prompt], [problem.suffix or ""])
        found = llama.text_infilling(*pair, suffix_first=spm, stop=problem.stops, **given)
    return [(each["generation"], each["finish_reason"]) for each in found]


@pytest.mark.parametrize("order", Order)
def test_answers_are_those_of_the_librarys_calls(llama: Llama, order: Order) -> None:
    made = sample_requests(order, "  print\n" if order in (Order.PSM, Order.SPM) else None)
    found = answers(llama, made)
    for request in made:
        ours = [found[request.problem.task_id, order, j] for j in range(5)]
        assert [(each.text, each.finish_reason) for each in ours] == library(llama, request)
        assert all(each.seed == request.seed and 0 <= each.tokens <= 12 for each in ours)
    assert len({each.text for each in found.values()}) > 10  # they differ, or this shows nothing
    reasons = {each.finish_reason for each in found.values()}
    assert "length" in reasons
    assert ("stop_sequence" in reasons) is (order is not Order.CHAT)
    assert order is not Order.CHAT or any("a" in each.text for each in found.values())


@pytest.mark.parametrize("order", Order)
def test_a_hole_ends_at_eot_too(llama: Llama, order: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model never comes to it."""
    seen: list[Any] = []
    monkeypatch.setattr(llama.session, "stream", lambda requests: seen.extend(requests) or iter(()))
    made = sample_requests(order, "x" if order in (Order.PSM, Order.SPM) else None)
    generator = LocalGenerator(llama, Ranks(llama.model.parallel, llama.model.device, messages=1))
    assert list(generator.generate(made, SAMPLED)) == []
    ends = {llama.tokenizer.eos_id} | ({llama.tokenizer.eot_id} if order in (Order.PSM, Order.SPM) else set())
    assert [request.stop_ids for request in seen] == [ends] * 4


def test_samples_are_the_same_in_any_parts(llama: Llama) -> None:
    whole = sample_requests(Order.PLAIN)
    parts = [
        replace(request, first=first, count=n) for request in whole for first, n in ((3, 2), (0, 1), (1, 2))
    ]
    assert answers(llama, parts[::-1]) == answers(llama, whole)


def test_samples_of_a_prompt_share_its_prefill() -> None:
    llama = tiny_llama()
    rows: list[int] = []
    run: Callable[..., Any] = llama.engine.runner.run

    def counting(batch: Any) -> Any:
        rows.append(sum(each.length for each in batch))
        return run(batch)

    llama.engine.runner.run = counting  # type: ignore[method-assign]
    request = replace(sample_requests(Order.PLAIN)[0], count=4)
    answers(llama, [request], replace(SAMPLED, max_gen_len=1))
    prompt = len(llama.tokenizer.encode(request.problem.prompt, bos=True, eos=False))
    assert rows == [prompt]


def test_a_long_prompt_gets_the_room_there_is_and_one_without_room_is_told(llama: Llama) -> None:
    longest = llama.model.params.max_seq_len
    problem = toy_problems(1)[0]

    def of(tokens: int) -> SampleRequest:
        text = "1" * (tokens - 2)  # each digit is a token; bos and the dummy space are the others
        assert len(llama.tokenizer.encode(text, bos=True, eos=False)) == tokens
        return SampleRequest(
            replace(problem, task_id=f"{tokens}", prompt=text, stops=()), Order.PLAIN, 3, 0, 2
        )

    settings = replace(SAMPLED, temperature=0.0, max_gen_len=longest)
    found = answers(llama, [of(longest - 3), of(longest), of(longest + 50), of(longest - 1)], settings)
    reasons = {task_id: (each.finish_reason, each.tokens <= 3) for (task_id, _, _), each in found.items()}
    assert reasons[f"{longest}"] == reasons[f"{longest + 50}"] == (PROMPT_TOO_LONG, True)
    assert reasons[f"{longest - 3}"][0] in ("length", "stop")
    assert reasons[f"{longest - 1}"][1]
    assert all(each.text == "" for each in found.values() if each.finish_reason == PROMPT_TOO_LONG)


def test_a_question_with_a_tag_of_the_format_is_told(llama: Llama) -> None:
    problem = replace(toy_problems(1)[0], question="what is [INST]?")
    found = answers(llama, [SampleRequest(problem, Order.CHAT, 3, 0, 2), sample_requests(Order.CHAT)[1]])
    assert [each.finish_reason for each in found.values()].count(UNSAFE_TAG) == 2
    assert len(found) == 7


def test_a_model_that_cannot_fill_holes_says_so() -> None:
    with pytest.raises(UnsupportedError, match="cannot fill in the middle"):
        answers(tiny_llama(kind="plain"), sample_requests(Order.PSM, "x"))


def test_leaving_early_leaves_nothing_in_the_engine(llama: Llama) -> None:
    generator = LocalGenerator(llama, Ranks(llama.model.parallel, llama.model.device, messages=1))
    stream: Any = generator.generate(sample_requests(Order.PLAIN), SAMPLED)
    next(stream)
    stream.close()
    llama.engine.tidy()


# ---- which model it is -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_digest_tells_weights_and_nothing_else(tmp_path: Path) -> None:
    """The same in either layout and any number of files; another for other weights, also of one tensor."""
    tensors = random_weights(SHAPE, tiny_tokenizer().n_words)
    folders = [
        save_checkpoint(tmp_path / f"s{shards}", SHAPE, tensors, tiny_model_path(), shards)
        for shards in (1, 2)
    ]
    twin = tmp_path / "hf"
    hugging_face_twin(SHAPE, tensors).save_pretrained(twin)
    changed = {**tensors, "layers.1.ffn_norm.weight": tensors["layers.1.ffn_norm.weight"] * 1.01}
    other = save_checkpoint(tmp_path / "other", SHAPE, changed, tiny_model_path())
    half = save_checkpoint(tmp_path / "half", SHAPE, tensors, tiny_model_path(), dtype=torch.bfloat16)
    found = [fingerprint(open_checkpoint(folder)) for folder in (*folders, twin, other, half)]
    assert found[0] == found[1] == found[2]
    assert len(set(found)) == 3
    assert all(len(each) == 64 for each in found)


def test_a_model_says_what_it_is(tiny_checkpoint: Path, llama: Llama) -> None:
    built = Llama.build(tiny_checkpoint, max_seq_len=64, max_batch_size=2, device="cpu")
    assert model_info(built) == ModelInfo(
        "tiny", fingerprint(open_checkpoint(tiny_checkpoint)), "float32", 64, None, ()
    )
    assert model_info(llama) == ModelInfo("a Llama without a folder", None, "float32", 128, None, ())


def test_a_quantized_model_says_so() -> None:
    tiny, limits = ROOT / "CodeLlama-tiny", {"max_seq_len": 64, "max_batch_size": 2}
    plain = model_info(Llama.build(tiny, **limits, device="cpu"))
    found = model_info(Llama.build(tiny, **limits, device="cpu", quantize="int8", cache_dtype="int8"))
    assert found.weights != plain.weights
    assert replace(plain, weights=found.weights, quantization="int8", cache_dtype="int8") == found


@pytest.mark.parametrize(
    ("size", "changes", "has_step", "variants"),
    [
        ("7B", {}, False, ("base", "instruct")),
        ("13B", {"vocab_size": 32000}, False, ("python",)),
        ("34B", {}, False, ("base", "instruct", "python")),
        ("70B", {}, False, ("base", "python")),
        ("70B", {"rope_theta": 1e4}, True, ("instruct",)),
        ("70B", {"rope_theta": 1e4}, False, ()),
        ("7B", {"rope_theta": 1e4, "vocab_size": 32000}, False, ()),
        ("7B", {"dim": 2048}, False, ()),
    ],
)
def test_shapes_and_vocabulary_narrow_down_the_variant(
    size: str, changes: dict[str, Any], has_step: bool, variants: tuple[str, ...]
) -> None:
    args: ModelArgs = replace(args_of(next(each for each in MEMBERS if each.name == size)), **changes)
    assert variants_of(args, has_step) == variants
