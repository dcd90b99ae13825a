"""Law: what a Llama answers on a GPU is what it answers on the CPU, with every option, in float32."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_calls import CALLS, PROMPTS, same
from pretended_gpu import on_the_cpu
from tiny_llama import GQA
from tiny_models import random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama import Llama
from llama.engine import Engine
from llama.errors import NumericsError
from llama.kernels import attention, draws, norms
from llama.prompts import Prompt
from llama.serving import AsyncEngine

BUILD = {"max_seq_len": 128, "max_batch_size": 4, "dtype": "float32"}


@pytest.fixture(scope="module")
def on_cpu(tiny_checkpoint: Path) -> Llama:
    return Llama.build(tiny_checkpoint, device="cpu", **BUILD)


@pytest.fixture(scope="module")
def on_gpu(there: Callable[..., Any], tiny_checkpoint: Path) -> Llama:
    with there(devices=2):
        return Llama.build(tiny_checkpoint, device="cuda:0", **BUILD)


@pytest.mark.parametrize("name", CALLS)
def test_every_option_gives_what_it_gives_on_the_cpu(gpu, on_gpu, on_cpu, name):
    found = CALLS[name](on_gpu)
    with on_the_cpu():
        expected = CALLS[name](on_cpu)
    assert same(found, expected)
    assert gpu.counts["launch"] > 100
    assert gpu.counts["off device"] == 0


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with heads of 32 numbers, as an int8 cache needs them."""
    params = {**GQA, "n_heads": 2, "n_kv_heads": 1}
    tensors = random_weights(params, tiny_tokenizer("infilling").n_words)
    return save_checkpoint(tmp_path_factory.mktemp("wide") / "wide", params, tensors, tiny_model_path())


def test_an_int8_cache(gpu, wide):
    found = CALLS["greedy"](Llama.build(wide, device="cuda", cache_dtype="int8", **BUILD))
    with on_the_cpu():
        expected = CALLS["greedy"](Llama.build(wide, device="cpu", cache_dtype="int8", **BUILD))
        exact = CALLS["greedy"](Llama.build(wide, device="cpu", **BUILD))
    assert same(found, expected)
    assert not same(found, exact)


def test_quantized_weights_are_plain_there_and_that_is_said(gpu, wide, capsys):
    llama = Llama.build(wide, device="cuda", quantize="int8", **BUILD)
    assert "cuda has no kernel for them" in capsys.readouterr().err
    assert set(llama.model.held_bytes) == {"float32"}
    found = CALLS["greedy"](llama)
    with on_the_cpu():
        quantized = Llama.build(wide, device="cpu", quantize="int8", **BUILD)
        plain = Llama.build(wide, device="cpu", **BUILD)
        exact = CALLS["greedy"](plain)
        plain.model.load_state_dict(quantized.model.state_dict())
        expected = CALLS["greedy"](plain)
    assert same(found, expected)
    assert not same(found, exact)


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_host_whose_tensors_are_made_on_the_gpu(gpu, wide, quantize):
    """As programs for the reference set it. What is read from files and made on the host stays there."""
    build = {**BUILD, "quantize": quantize}
    torch.set_default_device("cuda")
    try:
        found = CALLS["greedy"](Llama.build(wide, device="cuda", **build))
        on_host = CALLS["greedy"](Llama.build(wide, device="cpu", **build))
    finally:
        torch.set_default_device(None)
    expected = CALLS["greedy"](Llama.build(wide, device="cuda", **build))
    assert same(found, expected)
    with on_the_cpu():
        assert same(on_host, CALLS["greedy"](Llama.build(wide, device="cpu", **build)))


def test_16_bit_models_are_near_the_cpu(gpu, tiny_checkpoint):
    """Their kernels round otherwise, so that ids may differ: the logits are near."""
    build = {**BUILD, "dtype": "bfloat16"}
    ids = torch.tensor([[5, 9, 40, 7, 30], [11, 4, 8, 8, 1]])
    llama = Llama.build(tiny_checkpoint, device="cuda", **build)
    found = [llama.model(ids[:, :3].to("cuda")).cpu(), llama.model(ids[:, 3:].to("cuda"), 3).cpu()]
    with on_the_cpu():
        expected = Llama.build(tiny_checkpoint, device="cpu", **build).model(ids)
    error = (torch.cat(found, 1) - expected).norm() / expected.norm()
    assert error < 0.02
    assert any("_flash_attention" in line for line in gpu.told("launch"))


def test_the_reference_s_call(gpu, on_gpu, on_cpu):
    ids = torch.tensor([[5, 9, 40, 7, 30, 2], [11, 4, 8, 8, 1, 3]])
    for start, end in ((0, 4), (4, 5), (5, 6), (2, 6)):
        found = on_gpu.model(ids[:, start:end].to("cuda"), start)
        with on_the_cpu():
            expected = on_cpu.model(ids[:, start:end], start)
        assert found.device == torch.device("cuda", 0)
        torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)


def test_a_row_that_is_not_finite_is_named_and_its_neighbours_go_on(gpu, on_gpu):
    good = PROMPTS[0]
    ids, poisoned = (set(on_gpu.tokenizer.encode(text, bos=True, eos=False)) for text in (good, good + "漢"))
    (bad, *_) = sorted(poisoned - ids)
    alone = on_gpu.text_completion([good], 0, max_gen_len=8)[0]["generation"]
    table = on_gpu.model.tok_embeddings.weight
    before = table[bad].clone()
    stream = on_gpu.stream([good], 0, max_gen_len=8)
    text = next(stream).text
    table[bad].fill_(torch.nan)
    try:
        with pytest.raises(NumericsError, match="logits are not finite"):
            on_gpu.text_completion([good + "漢"], 0, max_gen_len=8)
        assert text + "".join(delta.text for delta in stream) == alone
        assert not on_gpu.engine.unfinished
    finally:
        table[bad].copy_(before)


def test_the_state_dict_is_that_of_the_cpu(gpu, on_gpu, on_cpu):
    found, expected = on_gpu.model.state_dict(), on_cpu.model.state_dict()
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name].cpu(), value), name
    assert {value.device for value in found.values()} == {torch.device("cuda", 0)}
    assert on_gpu.model.held_bytes == {"float32": sum(value.nbytes for value in expected.values())}


# ---- a forgotten `device=` fails ----


class Forgetful:
    """`torch`, whose function `name` leaves out the device."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> object:
        found = getattr(torch, name)
        if name != self.name:
            return found
        return lambda *args, device=None, **more: found(*args, **more)


PLANTED = [
    (norms, "arange", "greedy"),
    (draws, "arange", "greedy"),
    (attention, "arange", "long prompt"),
]


@pytest.mark.parametrize(("module", "function", "call"), PLANTED, ids=str)
def test_a_forgotten_device_fails(gpu, on_gpu, monkeypatch, module, function, call):
    monkeypatch.setattr(module, "torch", Forgetful(function))
    with pytest.raises(RuntimeError, match="on the same device"):
        CALLS[call](Llama(on_gpu.model, on_gpu.tokenizer))  # with buffers of its own


def test_all_work_is_done_with_the_model_s_device_as_the_current_one(two_gpus, gpu, tiny_checkpoint, on_cpu):
    """A program's own device stays as it was, and nothing runs there."""
    llama = Llama.build(tiny_checkpoint, device="cuda:1", **BUILD)
    gpu.forget()
    ids = torch.tensor([[5, 9, 40]])
    found = CALLS["all limits"](llama), CALLS["stream"](llama), CALLS["echo"](llama)
    logits = llama.model(ids.to("cuda:1"))
    assert gpu.counts["launch"] > 100
    assert gpu.told("off device") == []
    assert torch.cuda.current_device() == 0
    with on_the_cpu():
        assert same(found, (CALLS["all limits"](on_cpu), CALLS["stream"](on_cpu), CALLS["echo"](on_cpu)))
        expected = on_cpu.model(ids)
    torch.testing.assert_close(logits.cpu(), expected, atol=1e-4, rtol=1e-4)


def test_a_long_prompt_takes_one_step(gpu, tmp_path, monkeypatch):
    """Of 2,000 tokens; a CPU takes two. What a caller says counts."""
    params = {**GQA, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1}
    tensors = random_weights(params, tiny_tokenizer("infilling").n_words)
    folder = save_checkpoint(tmp_path / "narrow", params, tensors, tiny_model_path())
    llama = Llama.build(folder, None, 4096, 1, device="cuda", dtype="float32")
    steps: list[int] = []
    hidden = llama.model.hidden
    monkeypatch.setattr(
        llama.model, "hidden", lambda ids, cache: steps.append(len(ids)) or hidden(ids, cache)
    )
    (request,) = llama.requests([Prompt((5,) * 2000, frozenset(), False)], 0, max_gen_len=1)
    for engine in (llama.engine, Engine(llama.model, llama.tokenizer, step_tokens=1000)):
        engine.add(request)
        while engine.unfinished:
            engine.step()
    assert steps == [2000, 1000, 1000]


def test_a_service_answers_from_its_own_thread(gpu, tiny_checkpoint, on_cpu):
    """Whose current device is another at first, where there are two."""
    llama = Llama.build(tiny_checkpoint, device=f"cuda:{gpu.devices - 1}", **BUILD)
    gpu.forget()

    async def main(engine: AsyncEngine) -> list[str]:
        requests = llama.requests(PROMPTS, 0.8, 0.9, max_gen_len=8, seed=1)
        answers = await asyncio.gather(*map(engine.complete, requests))
        return ["".join(delta.text for delta in deltas) for deltas in answers]

    found = asyncio.run(llama.serve(main))
    assert gpu.counts["launch"] > 100
    assert gpu.told("off device") == []
    with on_the_cpu():
        expected = on_cpu.text_completion(PROMPTS, 0.8, 0.9, max_gen_len=8, seed=1)
    assert found == [each["generation"] for each in expected]
