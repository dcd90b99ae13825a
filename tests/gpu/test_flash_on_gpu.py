"""Laws of torch's flash attention on a GPU: each way of it gives what the CPU gives, in one launch a layer, and can be
recorded; where a trial of it fails, the plain way is taken and that is said.

On a pretended GPU the operator is emulated, and may compute in float32, so that ids are equal to the CPU's.
"""

from __future__ import annotations

import dataclasses
import json
from array import array
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_requests import ask, ids
from flash_ways import WAYS, flash_checkpoints, flash_way
from gpu_calls import CALLS, same
from gpu_steps import Repeated, outputs
from pretended_gpu import Gpu, on_the_cpu
from pretended_gpu import attention as emulated
from ranks import run_forked
from tiny_tokenizers import tiny_tokenizer

from llama import Llama
from llama.engine import Engine, Request, limits
from llama.kernels import flash, flash_trial
from llama.kv_cache import BLOCK, Part
from llama.sampling import SamplingParams

LIMITS = {"max_seq_len": 640, "max_batch_size": 8}
SAMPLED = SamplingParams(0.9, 0.9)
PREFIX = ids(600, seed=4)
# Prompts of less than a block and of several, two of which begin alike; forks; a draft that is right at first.
REQUESTS: list[Request] = [
    ask(5, 9),
    ask(300, 6, SAMPLED, seed=1),
    ask((*PREFIX, 7, 8), 6),
    ask((*PREFIX, 9), 6, SAMPLED, seed=2, n=3),
    ask(260, 8),
    ask(512, 4, top=2, score_prompt=True),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return flash_checkpoints(tmp_path_factory.mktemp("flash"))


@pytest.fixture(autouse=True)
def _short_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step is longer than a test's own, nor the largest one that is run at the end of loading."""
    monkeypatch.setattr(limits, "STEP_TOKENS_CUDA", 512)


@pytest.fixture(params=WAYS)
def way(guard: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """Each of them as the best there is, in float32 as well."""
    with flash_way(request.param, single=True, tried=True):
        yield request.param


@pytest.fixture(scope="module")
def on_host(folders: dict[str, Path]) -> Callable[[str], Llama]:
    """A model on the CPU, by its name."""

    @cache
    def host(shape: str) -> Llama:
        with on_the_cpu():
            return Llama.build(folders[shape], device="cpu", dtype="float32", **LIMITS)

    return host


@pytest.fixture(scope="module")
def wanted(on_host: Callable[[str], Llama]) -> Callable[[str], dict[Any, list[int]]]:
    """The ids that a CPU gives for REQUESTS."""

    @cache
    def of(shape: str) -> dict[Any, list[int]]:
        host = on_host(shape)
        with on_the_cpu():
            found = outputs(Engine(host.model, host.tokenizer, step_tokens=400), REQUESTS)
        return {key: tokens for key, (tokens, *_) in found.items()}

    return of


@pytest.fixture(scope="module")
def calls_of_the_cpu(on_host: Callable[[str], Llama]) -> Callable[[str], Any]:
    """What a call gives there."""

    @cache
    def call(name: str) -> Any:
        with on_the_cpu():
            return CALLS[name](on_host("gqa"))

    return call


def built(folder: Path, **more: Any) -> Llama:
    return Llama.build(folder, **{"device": "cuda:0", "dtype": "float32", **LIMITS, **more})


def taken(engine: Engine) -> str:
    return engine.memory.pool.attention


def seen(gpu: Gpu) -> int:
    """How often the operator was started."""
    return sum(
        n for (kind, op, _), n in gpu.places.items() if kind == "launch" and op.startswith("_flash_attention")
    )


@pytest.mark.parametrize(
    ("way", "shape"), [*product(WAYS, ("gqa", "mqa")), ("tables", "mha")], indirect=["way"]
)
def test_each_way_gives_the_ids_of_the_cpu(
    way: str, gpu: Gpu, folders: dict[str, Path], wanted: Callable[[str], dict[Any, list[int]]], shape: str
) -> None:
    """With prefixes that are shared, forks, drafts, and steps that hold whole prompts, chunks and single tokens."""
    expected = wanted(shape)
    llama = built(folders[shape])
    engine = Engine(llama.model, llama.tokenizer, step_tokens=400)
    assert taken(engine) == f"flash, {way}"
    assert engine.blocks.size == (256 if way == "tables" else BLOCK)
    gpu.forget()
    drafted = dataclasses.replace(REQUESTS[4], prediction=tuple(expected[4, 0][-8:]))
    found = outputs(engine, [*REQUESTS[:4], drafted, *REQUESTS[5:]])
    assert {key: tokens for key, (tokens, *_) in found.items()} == expected
    assert seen(gpu) % llama.model.n_layers == 0 < seen(gpu)
    assert not any("scaled_dot_product" in line for line in gpu.told("launch"))
    assert engine.counters.reused_tokens >= 512
    assert engine.counters.accepted_tokens > 0


def test_every_option_gives_what_it_gives_on_the_cpu(
    way: str, gpu: Gpu, folders: dict[str, Path], calls_of_the_cpu: Callable[[str], Any]
) -> None:
    llama = built(folders["gqa"])
    for name in ("echo", "prediction", "long prompt", "infilling", "stream"):  # "echo" is greedy as well
        assert same(CALLS[name](llama), calls_of_the_cpu(name)), name


def test_a_step_starts_one_kernel_a_layer_whatever_is_in_it(
    way: str, gpu: Gpu, folders: dict[str, Path]
) -> None:
    """And as many of all kinds for 64 single tokens as for one; where positions have to be gathered, some more."""
    llama = built(folders["gqa"], max_seq_len=256, max_batch_size=64)
    found: dict[int, set[int]] = {}
    for count in (1, 64):
        # Short enough that all decode before they grow into a second block.
        requests = [ask(BLOCK - 12 + i % 4, 14, seed=i) for i in range(count)]
        engine = Engine(llama.model, llama.tokenizer, speculate=False, step_tokens=512)
        gpu.forget()
        launches: list[int] = []

        def step(engine: Engine = engine, count: int = count, launches: list[int] = launches) -> None:
            assert seen(gpu) == llama.model.n_layers
            assert gpu.counts["sync"] <= 1 == gpu.counts["copy in"], gpu.told("sync")
            running = engine.scheduler.running
            if len(running) == count and all(sequence.generated > 1 for sequence in running):
                launches.append(gpu.counts["launch"])
            gpu.forget()

        outputs(engine, requests, step)
        assert len(launches) > 3
        found[count] = set(launches)
    assert len(set.union(*found.values())) == 1 + (way == "runs")
    assert len(found[1]) == 1


def test_a_recorded_step_gives_the_tokens_of_one_that_runs(
    way: str, gpu: Gpu, folders: dict[str, Path]
) -> None:
    """While sequences grow into new blocks, and end."""
    llama = built(folders["gqa"])
    requests = [
        ask(250, 12, SAMPLED, seed=1),
        ask(24, 20, n=2, seed=2),
        ask((*PREFIX, 7), 16),
        ask((*PREFIX, 9), 16),
    ]
    engines = [Engine(llama.model, llama.tokenizer, speculate=False) for _ in range(2)]
    expected = outputs(engines[0], requests)
    repeated = Repeated(engines[1])
    engines[1].runner.compute = repeated  # type: ignore[method-assign]
    assert outputs(engines[1], requests) == expected
    assert repeated.repeated > 10


def test_what_a_recording_depends_on_is_told(way: str, gpu: Gpu, folders: dict[str, Path]) -> None:
    """The law above holds something: without it, a step is repeated that read other blocks."""
    pool = built(folders["gqa"]).engine.memory.pool
    long, other = 3 * pool.size + 1, Part(array("i", [5, 6]), pool.size + 1, 1)
    in_runs, scattered = (
        pool.step([Part(array("i", table), long, 1), other]) for table in ([1, 2, 3, 4], [1, 3, 2, 4])
    )
    assert (pool.recorded_for(in_runs) != pool.recorded_for(scattered)) == (way == "runs")
    # A prompt of one token is no other step than the one behind it.
    first, second = (pool.recorded_for(pool.step([Part(array("i", [1]), start, 1)])) for start in (0, 1))
    assert (first == second) == (way != "gathered")


# ---- in 16 bits: also on a real device ----


@pytest.fixture(scope="module")
def near(folders: dict[str, Path]) -> Callable[..., None]:
    """Holds the logits of a model on the device to those of the CPU in float32."""
    limits = {"max_seq_len": 512, "max_batch_size": 4}
    tokens = torch.tensor([ids(300, seed=1), ids(300, seed=2)])

    @cache
    def expected(form: str) -> torch.Tensor:
        with on_the_cpu():
            host = Llama.build(folders["gqa"], device="cpu", dtype="float32", cache_dtype=form, **limits)
            return host.model(tokens)

    def check(form: str, dtype: str, wanted: str | None) -> None:
        llama = Llama.build(folders["gqa"], device="cuda:0", dtype=dtype, cache_dtype=form, **limits)
        name = llama.engine.memory.pool.attention
        assert name == wanted if wanted else name.startswith("flash")
        there = tokens.to("cuda")
        found = [llama.model(there[:, a:b], a).cpu() for a, b in ((0, 40), (40, 41), (41, 300))]
        # A number that falls between two of int8 may be rounded to either.
        most = {"bfloat16": 0.06, "float16": 0.01}[dtype] + 0.02 * (form == "int8")
        error = float((torch.cat(found, 1) - expected(form)).norm() / expected(form).norm())
        assert error < most

    return check


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("form", ["auto", "int8"])
def test_16_bits_are_near_the_cpu(gpu: Gpu, near: Callable[..., None], form: str, dtype: str) -> None:
    """By this kernel, whatever the device: so that a GPU that does not take it is noticed."""
    near(form, dtype, "flash, gathered" if form == "int8" else None)


# (numbers of a head, query heads of a key head); fewer where each is emulated.
HEADS = [(64, 1), (128, 8), (256, 2)] if torch.cuda.is_available() else [(64, 2)]
SIZES = (
    [(1900, 500), (2047, 1), (3, 600), (129, 1)],
    [(2400, 1), (2048, 1), (603, 1), (130, 1)],
    [(0, 1000), (0, 1), (0, 256), (0, 77)],
)


@pytest.mark.parametrize("way", WAYS if flash.knows_tables() else WAYS[1:])
@pytest.mark.parametrize(("dim", "group"), HEADS)
def test_longer_steps_are_near_the_cpu_amid_memory_that_is_nan(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, way: str, dim: int, group: int
) -> None:
    """The trial, at sizes that take several tiles of the kernel and several parts of the device."""
    monkeypatch.setattr(flash_trial, "_STEPS", SIZES)
    monkeypatch.setattr(flash_trial, "_ROOM", 2560)
    with torch.inference_mode():
        assert flash_trial._wrong(way, torch.device("cuda", 0), torch.bfloat16, dim, group) is None


def test_a_sequence_that_is_not_finite_leaves_nothing_in_its_blocks(
    gpu: Gpu, folders: dict[str, Path]
) -> None:
    """Who has them next gets what it got before, also where it does not fill them."""
    llama = Llama.build(folders["gqa"], device="cuda:0", dtype="bfloat16", max_seq_len=512, max_batch_size=1)
    engine = Engine(llama.model, llama.tokenizer, cache_tokens=512, prefix_reuse=False)
    good, bad = ask(tuple(range(3, 40)), 8), ask((*[400] * 300,), 8)
    (alone,) = outputs(engine, [good]).values()
    table = llama.model.tok_embeddings.weight
    before = table[400].clone()
    table[400].fill_(torch.nan)
    try:
        (failed,) = outputs(engine, [bad]).values()
    finally:
        table[400].copy_(before)
    assert failed[0] == list(bad.prompt)
    assert engine.memory.pool.store.isnan().any()
    (again,) = outputs(engine, [good]).values()
    assert again == alone


# ---- a trial that fails ----


@pytest.mark.usefixtures("guard")
@pytest.mark.parametrize("fault", ["raises", "wrong", "poisoned"])
def test_a_trial_that_fails_leaves_the_plain_way_and_says_why(
    gpu: Gpu,
    near: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    kernel = emulated.flash_of_lengths

    def faulty(q: Any, *args: Any, **named: Any) -> Any:
        if fault == "raises":
            raise RuntimeError("USE_FLASH_ATTENTION was not enabled for build.\nException raised from here")
        out, *others = kernel(q, *args, **named)
        return (out + 0.5 if fault == "wrong" else out.fill_(torch.nan)), *others

    operator = torch.ops.aten._flash_attention_forward.default
    monkeypatch.setitem(emulated.KERNELS, operator, faulty)
    with flash_way("tables"):
        near("auto", "bfloat16", "torch")
        lines = [line for line in capsys.readouterr().err.splitlines() if "flash attention" in line]
        near("auto", "bfloat16", "torch")  # is not tried again
        assert "flash attention" not in capsys.readouterr().err
    why = {
        "raises": "it raises RuntimeError: USE_FLASH_ATTENTION was not enabled for build.",
        "wrong": "it is off by 0.5",
        "poisoned": "it is off by inf",
    }[fault]
    for way, line in zip(WAYS, lines, strict=True):
        start = f"torch's flash attention ({way}, bfloat16, heads of 32) is not used on cuda:0: {why}"
        assert line.startswith(start)


@pytest.mark.usefixtures("guard")
def test_a_trial_that_loses_the_device_is_an_error(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every later call would fail, of the plain way too, and be taken for the one at fault."""
    lost = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def fail(*_: Any, **__: Any) -> Any:
        raise lost

    monkeypatch.setitem(emulated.KERNELS, torch.ops.aten._flash_attention_forward.default, fail)
    with flash_way("runs"):
        monkeypatch.setattr(torch.cuda, "synchronize", fail)
        with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
            flash_trial.why_not("runs", torch.device("cuda:0"), torch.bfloat16, 32)
    assert "is not used" not in capsys.readouterr().err


def test_a_trial_is_no_part_of_a_step(gpu: Gpu, folders: dict[str, Path]) -> None:
    """Nor does it draw from the program's generators."""
    torch.manual_seed(3)
    state = torch.get_rng_state()
    llama = Llama.build(folders["gqa"], device="cuda:0", dtype="bfloat16", max_seq_len=256, max_batch_size=2)
    assert torch.equal(torch.get_rng_state(), state)
    gpu.forget()
    outputs(llama.engine, [ask(20, 1)])
    assert gpu.counts["sync"] == 1, gpu.told("sync")


# ---- sizes of blocks ----


@pytest.mark.usefixtures("guard")
def test_blocks_are_of_256_positions_where_that_suits_the_kernel(gpu: Gpu, folders: dict[str, Path]) -> None:
    """Not where a sequence is shorter, nor where a caller says otherwise."""

    def engine(**more: Any) -> Engine:
        build = {"device": "cuda:0", "dtype": "bfloat16", "max_seq_len": 300, "max_batch_size": 3, **more}
        return Llama.build(folders["gqa"], **build).engine

    with flash_way("tables"):
        whole = engine()
        assert (whole.blocks.size, taken(whole)) == (256, "flash, tables")
        for model, size in ((whole.model, 32), (whole.model, 64)):
            other = Engine(model, tiny_tokenizer("infilling"), block=size)
            assert (other.blocks.size, taken(other)) == (size, "flash, runs")
        # As many sequences as may run have room, each in whole blocks.
        assert Engine(whole.model, tiny_tokenizer("infilling")).blocks.total == 3 * 2
        assert engine(max_seq_len=255).blocks.size == BLOCK
        assert engine(dtype="float32").blocks.size == BLOCK
        assert engine(cache_dtype="int8").blocks.size == BLOCK
    with flash_way("runs"):
        assert (engine().blocks.size, taken(engine())) == (BLOCK, "flash, runs")


# ---- ranks ----


@pytest.mark.slow
@pytest.mark.parametrize("lacks", ["nobody", "the second"])
def test_two_ranks_have_the_same_blocks_and_give_what_the_cpu_gives(
    guard: Path, tiny_checkpoint: Path, tmp_path: Path, lacks: str
) -> None:
    """Also where the second one's kernel takes no tables, and so reads in another way."""
    names, report = ("greedy", "samples", "long prompt"), tmp_path / "found.json"
    job = (2, "gpu_rank_script.py", guard, tiny_checkpoint, report, f"flash:{lacks}", *names)
    (done,) = run_forked(tmp_path / "report", job)
    assert done["codes"] == [0, 0], done["stderr"]
    found = json.loads(report.read_text())
    expected = ("flash, tables", 256) if lacks == "nobody" else ("flash, runs", BLOCK)
    assert (found["attention"], found["block"]) == expected
    llama = Llama.build(tiny_checkpoint, None, 256, 4, device="cpu", dtype="float32")
    for name in names:
        assert same(found["calls"][name], json.loads(json.dumps(CALLS[name](llama)))), name
