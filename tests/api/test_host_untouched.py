"""Law: the host program does not notice. Nothing global is changed, and nothing global changes results."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from host_state import state
from tiny_llama import tiny_llama
from tiny_tokenizers import tiny_tokenizer

from llama.errors import RequestError
from llama.generation import Llama

TOKENIZER = tiny_tokenizer()
DIALOG = [{"role": "user", "content": "return self"}]


def build(folder, **options):
    return Llama.build(folder, max_seq_len=128, max_batch_size=4, device="cpu", **options)


def calls(llama):
    """One of every call, sampled and greedy, with scores; the last one fails."""
    out = [
        llama.text_completion(["def return", "a"], 0, max_gen_len=6, logprobs=2, echo=True),
        llama.text_completion(
            ["def"], 1.0, 0.9, 6, top_k=50, repetition_penalty=1.2, seed=1, n=2, stop=["zz"]
        ),
        llama.text_infilling(["a"], ["b"], 0.8, max_gen_len=6, seed=2),
        llama.chat_completion([DIALOG], 0.8, max_gen_len=6, seed=3),
        [delta.text for delta in llama.stream(["self"], 0, max_gen_len=6)],
    ]
    with pytest.raises(ValueError, match="temperature"):
        llama.text_completion(["a"], temperature=-1)
    return out


_PROGRAM = """
import random, sys
import numpy as np
import torch
from host_state import state
torch.manual_seed(123); np.random.seed(124); random.seed(125)
before = state()
from test_host_untouched import build, calls
first = build(sys.argv[1], seed=1)
after_build = state()
outputs = calls(first)
second = build(sys.argv[1], seed=1, dtype="bfloat16")
calls(second)
assert calls(first) == outputs
second.close(); first.close(); first.close()
after = state()
for name, value in before.items():
    for what, now in (("build", after_build[name]), ("a call", after[name])):
        if name == "logging":  # loggers that are new belong to who made them
            now = [each for each in now if each[0] in {known[0] for known in value}]
        assert now == value, f"{what} changed {name}: {value} -> {now}"
"""


@pytest.mark.slow
def test_two_builds_and_every_call_change_nothing(tiny_checkpoint):
    """In a fresh program, with the state taken before the import: no earlier build can hide a change."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(tiny_checkpoint)],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            # On busy cores two threads wait for each other. That their number is kept is the next test's.
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1] / "support"), *sys.path]),
        },
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_settings_of_the_host_are_kept(tiny_checkpoint):
    """Not put back to torch's defaults either."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        torch.set_default_dtype(torch.float64)
        torch.backends.mkldnn.enabled = False
        with torch.enable_grad():
            before = state()
            calls(build(tiny_checkpoint))
            after = state()
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.float32)
        torch.backends.mkldnn.enabled = True
    assert (before["default dtype"], before["threads"], before["grad"]) == (torch.float64, 2, True)
    assert before["mkldnn"] == (False, False)
    for name, value in before.items():
        assert after[name] == value, name


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


HOSTS = {
    "float64 default": lambda: default_dtype(torch.float64),
    "bfloat16 default": lambda: default_dtype(torch.bfloat16),
    "meta default": lambda: default_device("meta"),
    "meta context": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
    "inference": torch.inference_mode,
    "no grad": torch.no_grad,
    "grad": torch.enable_grad,
}


@pytest.fixture(scope="module")
def expected():
    return calls(tiny_llama(seed=1))


def alike(got, wanted):
    """Texts exactly, numbers nearly: a thread more may round a sum differently."""
    if isinstance(wanted, float):
        assert got == pytest.approx(wanted, abs=1e-3)
    elif isinstance(wanted, dict):
        assert list(got) == list(wanted)
        alike(list(got.values()), list(wanted.values()))
    elif isinstance(wanted, list):
        assert len(got) == len(wanted)
        for mine, theirs in zip(got, wanted, strict=True):
            alike(mine, theirs)
    else:
        assert got == wanted


def test_a_build_is_the_model_put_together_by_hand(tiny_checkpoint, expected):
    alike(calls(build(tiny_checkpoint)), expected)


@pytest.mark.parametrize("host", HOSTS)
def test_results_do_not_depend_on_modes_of_the_host(tiny_checkpoint, expected, host):
    """Built and called within the mode, built before and called within it, built within and called after."""
    with HOSTS[host]():
        inside = build(tiny_checkpoint)
        results = [calls(inside)]
    outside = build(tiny_checkpoint)
    with HOSTS[host]():
        results.append(calls(outside))
    results.append(calls(inside))
    for got in results:
        alike(got, expected)
    assert inside.model.dtype == torch.float32


@pytest.mark.parametrize("host", ["float64 default", "autocast", "grad", "inference"])
def test_the_call_of_the_reference_too(expected, host):
    model = tiny_llama().model
    ids = torch.tensor([TOKENIZER.encode("def return self", bos=True, eos=False)])
    wanted = model(ids)
    with HOSTS[host]():
        got = model(ids)
    assert got.dtype == torch.float32
    assert torch.allclose(got, wanted, atol=1e-4)
    assert not got.requires_grad


def test_generators_of_the_host_do_not_steer_a_seeded_result(tiny_checkpoint, expected):
    llama = build(tiny_checkpoint)
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        alike(calls(llama), expected)


BAD = [{"role": "user", "content": "[INST]"}]
UNSEEDED = {
    "two prompts, two samples": lambda llama: llama.text_completion(["a", "b"], 1.5, 1.0, 9, n=2),
    "ids": lambda llama: llama.generate([[1, 5]], 9, 1.5, 1.0),
    "infilling": lambda llama: llama.text_infilling(["a"], ["b"], 1.5, 1.0, 9),
    "chat, one refused": lambda llama: llama.chat_completion([BAD, DIALOG], 1.5, 1.0, 9),
    "stream": lambda llama: [(delta.text, delta.finish_reason) for delta in llama.stream(["a"], 1.5, 1.0, 9)],
    "requests": lambda llama: llama.requests(["a", "b"], 1.5, 1.0, 9),
}
NOTHING_DRAWN = {
    "greedy": lambda llama: llama.text_completion(["a"], 0, max_gen_len=3),
    "top_p 0": lambda llama: llama.text_completion(["a"], 0.8, 0.0, 3),
    "scores": lambda llama: llama.text_completion(["a b"], max_gen_len=0, echo=True, logprobs=True),
    "seeded": lambda llama: llama.text_completion(["a"], 0.8, max_gen_len=3, seed=5),
    "refused dialogs": lambda llama: llama.chat_completion([[{"role": "user", "content": "[INST]"}]] * 2),
    "a prompt too long": lambda llama: refused(llama.generate, [[1, 5], [1] * 900], 5),
    "no id": lambda llama: refused(llama.generate, [[1, 5], [9999]], 5),
    "predictions": lambda llama: refused(llama.text_completion, ["a", "b"], prediction=["a"] * 3),
}


def refused(call, *arguments, **options):
    with pytest.raises(RequestError):
        call(*arguments, **options)


@pytest.mark.parametrize("call", UNSEEDED)
@pytest.mark.parametrize("host", ["float64 default", "meta context", "inference"])
def test_without_a_seed_a_call_draws_once_from_torch_and_repeats_with_it(call, host):
    llama = tiny_llama("fused")
    results = []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            before = state()
            with HOSTS[host]():
                results.append(UNSEEDED[call](llama))
                again = UNSEEDED[call](llama)
            after = state()
            torch.manual_seed(seed)
            for _ in range(2):
                torch.randint(2**63 - 1, ())
            before["torch generator"] = state()["torch generator"]
            assert after == before
            assert again != results[-1]
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("call", NOTHING_DRAWN)
def test_where_nothing_is_sampled_nothing_is_drawn(llama, call):
    before = state()
    NOTHING_DRAWN[call](llama)
    assert state() == before


def test_with_a_seed_of_build_nothing_is_drawn():
    llama = tiny_llama(seed=3)
    before = state()
    for call in UNSEEDED.values():
        call(llama)
    assert state() == before
