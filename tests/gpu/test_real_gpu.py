"""Laws that only a real GPU can break; and that what is counted on one is what the pretended one counts."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_calls import CALLS, PROMPTS, same
from gpu_steps import decoding
from pretended_gpu import Gpu
from pretended_gpu.transfers import Transfers
from ranks import run_forked
from real_gpu import looking
from tiny_llama import GQA, weights
from tiny_tokenizers import tiny_tokenizer

from llama import Llama
from llama.model import ModelArgs, Transformer

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

# ---- counting ----

BLOCKING = {"pageable": 1, "sync": 1}
# As in test_pretended_gpu.py; results have no numbers here, and torch.tensor makes them without a copy.
COUNTED: dict[str, tuple[Callable[[torch.Tensor], object], dict[str, int]]] = {
    "a tensor": (lambda x: torch.ones(4).to("meta"), {"copy in": 1, **BLOCKING}),
    "asynchronous": (lambda x: torch.ones(4).to("meta", non_blocking=True), {"copy in": 1, "pageable": 1}),
    "written": (lambda x: x.copy_(torch.ones(4)), {"copy in": 1, **BLOCKING}),
    "a product": (lambda x: x @ x, {"launch": 1}),
    "several": (lambda x: torch.nn.functional.linear(x, x).softmax(-1), {"launch": 2}),
    "views": (lambda x: x.t()[1:].unflatten(-1, (2, 2)).detach(), {}),
    "memory": (lambda x: torch.empty_like(x), {}),
    "the host alone": (lambda x: torch.ones(4).sum().item(), {}),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", COUNTED)
def test_what_is_asked_of_a_real_device_is_counted(name: str, inference: bool) -> None:
    """Of torch's device without numbers, which every machine has."""
    work, expected = COUNTED[name]
    x, gpu = torch.zeros(4, 4, device="meta"), Gpu(Transfers())
    with torch.inference_mode(inference), looking(gpu, "meta"):
        work(x)
    assert dict(gpu.counts) == expected


def test_what_a_real_device_computes_stays_what_it_is() -> None:
    x, gpu = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)), Gpu(Transfers())
    with torch.inference_mode(), looking(gpu, "cpu"):
        found = torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None])
        chosen = x[x > 0].sum().item()
    torch.testing.assert_close(found[0], (x @ x.t() / 2).softmax(-1) @ x)
    assert chosen == x[x > 0].sum().item()
    assert gpu.counts["sync"] == 2  # the size of what the mask chooses, and the sum


# ---- steps ----

OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"logprobs": 2},
    "sampled": {"temperature": 0.9, "seed": 1},
    "all limits": {"temperature": 1.2, "top_p": 0.9, "top_k": 20, "min_p": 0.01, "seed": 2},
    "penalties": {
        "temperature": 0.9,
        "seed": 1,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
    },
    "bias": {"logit_bias": {300: 4.0, 17: -100.0}},
}


@pytest.fixture(scope="module")
def llama(tiny_checkpoint: Path) -> Llama:
    return Llama.build(tiny_checkpoint, None, 96, 8, device="cuda", dtype="bfloat16")


@pytest.fixture
def strict() -> Iterator[Callable[[str], None]]:
    """Sets what torch does where the host waits for the device: "error" or "default"."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode")
        yield torch.cuda.set_sync_debug_mode
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("name", OPTIONS)
def test_a_decode_step_waits_for_its_packet_alone(
    llama: Llama, strict: Callable[[str], None], name: str
) -> None:
    """Torch raises at whatever else waits for the device: it does not see events."""
    with decoding(llama, 3, **OPTIONS[name]) as step:
        step()
        strict("error")
        for _ in range(3):
            step()
        strict("default")


# ---- sizes ----


_PARAMS = {**GQA, "n_layers": 1}


def _answers(device: torch.device, cache_tokens: int) -> Any:
    """What a model of one layer, in 16 bits, says to several prompts at once."""
    tensors = weights()
    params = {**_PARAMS, "vocab_size": len(tensors["tok_embeddings.weight"])}
    model = Transformer(ModelArgs.from_params(params, max_seq_len=128, max_batch_size=4))
    for name, module in model.named_modules():
        if hasattr(module, "assign"):
            module.assign(tensors[f"{name}.weight"].to(device, torch.bfloat16))
    llama = Llama(model.eval(), tiny_tokenizer("infilling"), cache_tokens=cache_tokens)
    return llama.text_completion(PROMPTS, temperature=0, max_gen_len=16, logprobs=True)


def test_the_size_of_a_cache_changes_nothing() -> None:
    """The law below, where a machine without a GPU can try it."""
    assert same(_answers(torch.device("cpu"), 4096), _answers(torch.device("cpu"), 512))


@needs_gpu
def test_a_cache_of_more_than_two_to_the_31_numbers_is_a_cache() -> None:
    """There are one and a half times as many keys, so that those of the last head lie beyond it."""
    device, keys = torch.device("cuda", 0), 3 << 30
    tokens = keys // (_PARAMS["n_kv_heads"] * _PARAMS["dim"] // _PARAMS["n_heads"])
    if 2 * keys * torch.bfloat16.itemsize + (2 << 30) > torch.cuda.mem_get_info(device)[0]:
        pytest.skip("the GPU has too little free memory")
    assert same(_answers(device, tokens), _answers(device, 1024))


# ---- ranks ----


@needs_gpu
@pytest.mark.slow
def test_two_ranks_on_one_gpu_give_what_the_cpu_gives(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Over gloo: NCCL refuses two ranks on one device."""
    names, report = ("greedy", "all limits", "samples", "echo"), tmp_path / "found.json"
    (done,) = run_forked(
        tmp_path / "report", (2, "gpu_rank_script.py", "real", tiny_checkpoint, report, *names)
    )
    assert done["codes"] == [0, 0], done["stderr"]
    found = json.loads(report.read_text())
    assert found["ranks"] == 2
    llama = Llama.build(tiny_checkpoint, None, 128, 4, device="cpu", dtype="float32")
    for name in names:
        expected = json.loads(json.dumps(CALLS[name](llama)))
        assert same(found["calls"][name], expected), name
