"""Laws of several ranks: the number of ranks, shards and replicas changes nothing but the speed.

A launch takes seconds, so there are two, on 2 and 4 ranks, which run all scenarios of rank_script.py. They are
forks; test_endings.py, and the line of the README that test_readme.py runs, are commands.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from once import once
from rank_script import EXAMPLES, LONG, PROMPTS, SHARDS, score_texts, short_texts
from ranks import ROOT, Finished, run_ranks
from same_texts import same_texts
from tiny_models import SHAPE

from llama import Llama
from llama.evaluation.scoring import score

SCENARIOS = (
    "shards",
    "sizes",
    "replicas",
    "scores",
    "nan",
    "changed",
    "refusals",
    "dtypes",
    "int8_cache",
    "threads",
    "host",
    "examples",
)


class World:
    """A launch of all scenarios on `size` ranks, and what each rank wrote."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        path = folder / f"world-{size}"

        def run() -> dict[str, Any]:
            return asdict(run_ranks("rank_script.py", folder, *SCENARIOS, ranks=size, forked=True))

        self.finished = Finished(**once(path, run))

    def of(self, scenario: str) -> list[Any]:
        """The scenario's result on each rank."""
        self.finished.ok()
        paths = [self.folder / f"out-{self.size}" / f"{scenario}.{rank}.json" for rank in range(self.size)]
        return [json.loads(path.read_text()) for path in paths]


@pytest.fixture(scope="module")
def worlds(folder: Path) -> Any:
    return functools.cache(functools.partial(World, folder))


@pytest.fixture(params=[2, 4])
def world(worlds: Any, request: pytest.FixtureRequest) -> World:
    return worlds(request.param)


def test_the_oracle_is_not_trivial(one: dict[str, Any]) -> None:
    greedy = [each["generation"] for each in one["greedy"]]
    assert len(set(greedy)) == len(PROMPTS)
    assert len(set(one["sampled"])) == 2 * len(PROMPTS)
    assert len(set(one["many"])) > 11
    assert len(set(one["unseeded"])) == 4 * len(PROMPTS)
    assert sum(len(each["tokens"]) for each in one["greedy"]) > 40


def test_shards_on_ranks_is_the_same_text(world: World, one: dict[str, Any]) -> None:
    for found in world.of("shards"):
        for shards in SHARDS:
            same_texts(found[str(shards)], one)
            assert found[str(shards)]["size"] == world.size


def test_more_ranks_than_key_value_heads_hold_one_head_each(world: World) -> None:
    assert SHAPE["n_kv_heads"] == 2
    for found in world.of("shards"):
        assert found["1"]["kv_heads"] == 1


def test_each_rank_holds_its_share_of_the_weights(world: World, folder: Path) -> None:
    whole = (folder / "s1" / "consolidated.00.pth").stat().st_size
    for found in world.of("shards"):
        # Norms and, on 4 ranks, key/value heads are held several times.
        assert found["1"]["bytes"] < whole / world.size * 1.15
        assert found["1"]["bytes"] == found["4"]["bytes"]


def test_no_group_is_left_after_close(world: World) -> None:
    for found in world.of("shards"):
        assert found["initialized"] is False


def test_models_of_different_sizes_live_side_by_side(world: World, one: dict[str, Any]) -> None:
    for found in world.of("sizes"):
        same_texts(found["whole"], one)
        same_texts(found["half"], one)
        same_texts(found["half again"], one)
        assert (found["still"], found["initialized"]) == (True, False)


def test_replicas_give_all_results_in_order_on_every_rank(world: World, one: dict[str, Any]) -> None:
    for found in world.of("replicas"):
        assert found["replicas"] == 2
        same_texts(found["texts"], one)
        assert found["fewer prompts than replicas"][0]["generation"] == one["greedy"][0]["generation"]


def test_replicas_stream_every_prompt_on_every_rank(world: World, one: dict[str, Any]) -> None:
    for found in world.of("replicas"):
        stream = found["stream"]
        assert sorted(stream) == [str(i) for i in range(len(PROMPTS))]
        for i, expected in enumerate(one["greedy"]):
            assert "".join(text for text, _ in stream[str(i)]) == expected["generation"]
            assert [reason for _, reason in stream[str(i)] if reason] == [expected["finish_reason"]]
            assert stream[str(i)][-1][1] == expected["finish_reason"]


def test_scores_and_the_answers_to_lm_eval_are_those_of_one_rank(world: World, folder: Path) -> None:
    """On every rank, of one model over all of them and of replicas."""
    expected = score_texts(Llama.build(folder / "s1", None, 96, 8, device="cpu", dtype="float32"))
    for found in world.of("scores"):
        for size in ("whole", "half"):
            assert found[size]["answers"] == expected["answers"]
            assert found[size]["shared"] is True
            for kind in ("nats", "rolling"):
                assert found[size][kind] == pytest.approx(expected[kind], rel=1e-4)
            for (sum_, greedy), (other, likeliest) in zip(
                found[size]["pairs"], expected["pairs"], strict=True
            ):
                assert sum_ == pytest.approx(other, rel=1e-4)
                assert greedy is likeliest


def test_the_first_rank_reads_and_prints_what_all_score(world: World, folder: Path) -> None:
    llama = Llama.build(folder / "s1", None, 96, 8, device="cpu", dtype="float32")
    (expected,) = score(llama, [LONG])
    first, *others = world.of("scores")
    assert [each["code"] for each in (first, *others)] == [0] * world.size
    assert {each["out"] for each in others} == {""}
    rows = [line.split() for line in first["out"].splitlines()]
    assert float(rows[1][0]) == pytest.approx(expected.bits_per_byte, rel=1e-3)
    assert rows[1][2:] == [f"{expected.tokens:,}", f"{len(LONG.encode()):,}", "-"]
    assert [row[-1] for row in rows[2:]] == [str(folder / "s2" / "params.json"), "2"]


def test_bad_calls_raise_on_every_rank(world: World) -> None:
    for found in world.of("replicas"):
        assert found["bad call"]["type"] == "SamplingError"


def test_logits_that_are_not_finite_raise_on_every_rank_of_every_replica(world: World) -> None:
    results = world.of("nan")
    for found in results:
        for size in ("whole", "half"):
            assert found[size]["error"]["type"] == "NumericsError"
            assert found[size]["error"]["text"].startswith("row 1, sample 0, step 0: ")
            assert "float32" in found[size]["error"]["text"]
            assert found[size]["stream"]["type"] == "NumericsError"
            assert found[size]["afterwards"] == results[0]["whole"]["afterwards"]
    assert all(results[0]["whole"]["afterwards"])


def test_a_weight_that_one_rank_changes_alone_is_forgotten_on_all(world: World) -> None:
    for found in world.of("changed"):
        last = found["before"]
        for scores, fresh in (found["seen"], found["told"]):
            assert scores != pytest.approx(last, abs=1e-2)
            assert scores == pytest.approx(fresh, abs=1e-4)
            last = scores
        assert found["reused"] > [0]


def test_sizes_that_do_not_fit_are_refused_on_every_rank(world: World) -> None:
    for found in world.of("refusals"):
        assert [error["type"] for error in found.values()] == ["ParallelismError"] * 3
        # 3 does not divide the heads; the sizes that do are named.
        assert "3" in found["3"]["text"]
        assert found["3"]["text"].endswith("sizes that work: 1, 2, 4")
        # Twice the world fits the model on 2 ranks, but not the launch.
        twice = found[str(2 * world.size)]["text"]
        assert str(2 * world.size) in twice
        assert ("torchrun" in twice) == (world.size == 2)


def test_ranks_that_compute_in_different_dtypes_all_say_so(world: World) -> None:
    for found in world.of("dtypes"):
        assert found["type"] == "ConfigError"
        assert "torch.bfloat16" in found["text"]
        assert "torch.float32" in found["text"]


def test_int8_caches_on_ranks_give_the_same_text(world: World, folder: Path) -> None:
    """Sums over ranks round otherwise, and now and then a key or value to another code."""
    with Llama.build(
        folder / "wide", None, 96, 8, device="cpu", dtype="float32", cache_dtype="int8"
    ) as llama:
        one = json.loads(json.dumps(short_texts(llama)))
    for found in world.of("int8_cache"):
        assert found["bytes"]
        same_texts(found, one, within=0.05)


def test_ranks_whose_caches_differ_all_say_so(world: World) -> None:
    for found in world.of("int8_cache"):
        assert found["differ"]["type"] == "ConfigError"
        assert "one rank has cache_dtype auto and another int8" in found["differ"]["text"]


def test_a_process_group_of_the_host_program_survives(world: World, one: dict[str, Any]) -> None:
    for found in world.of("host"):
        assert found["text"] == one["greedy"][0]["generation"]
        assert found["total"] == world.size
        assert found["threads"][0] == found["threads"][1]


def test_ranks_share_the_cores(world: World) -> None:
    cores = len(psutil.Process().cpu_affinity())
    for found in world.of("threads"):
        assert found == {"outside": 1, "inside": max(1, cores // world.size), "after": 1}


def test_the_examples_print_the_same_on_any_number_of_ranks(forked: Any, worlds: Any) -> None:
    """And nothing else is printed, although a launch builds many models."""
    if not (ROOT / "CodeLlama-tiny" / "consolidated.00.pth").exists():
        pytest.skip("CodeLlama-tiny is not there")
    assert forked["examples"]["codes"] == [0]
    alone = forked["examples"]["stdout"]
    assert alone.count("\n==================================\n") >= len(EXAMPLES)
    for said in ("def is_empty(path):", "= Filled text =", "> Assistant: "):
        assert said in alone
    assert worlds(2).finished.ok().stdout == alone
    assert worlds(4).finished.ok().stdout == alone
