"""Laws of several ranks: the number of ranks, shards and replicas changes nothing but the speed, and a launch
always ends: with 0 where all went well, with another code and no process left where it did not.

A launch takes seconds, so each runs many scenarios of rank_script.py, once for the whole module.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from rank_script import EXAMPLES, NAN_ID, PROMPTS, SHARDS, texts
from ranks import ROOT, Finished, launched, run_ranks
from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path, tiny_tokenizer

from llama import Llama
from llama.distributed.devices import threads_per_rank

SCENARIOS = ("shards", "sizes", "replicas", "nan", "changed", "refusals", "threads", "host", "examples")
# Below the 30 s after which torchrun kills what has not ended by itself, far above what an end takes.
SOON = 28.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    weights = random_weights(SHAPE, _vocab())
    for shards in SHARDS:
        save_checkpoint(folder / f"s{shards}", SHAPE, weights, tiny_model_path(), shards)
    weights["tok_embeddings.weight"][NAN_ID] = torch.nan
    save_checkpoint(folder / "nan", SHAPE, weights, tiny_model_path(), 2)
    return folder


def _vocab() -> int:
    """Made divisible by 4 in the fixture's tokenizer, or four ranks could not share the output."""
    vocab = tiny_tokenizer().n_words
    assert vocab % 4 == 0, f"{vocab} pieces"
    return vocab


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    """What a single rank in this very process finds."""
    llama = Llama.build(folder / "s1", None, 96, 8, device="cpu", dtype="float32")
    return json.loads(json.dumps(texts(llama)))


class World:
    """A launch of all scenarios on `size` ranks, and what each rank wrote."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.finished: Finished = run_ranks("rank_script.py", folder, *SCENARIOS, ranks=size)

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


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Texts, tokens and reasons are equal; log-probabilities are close."""
    assert found["sampled"] == expected["sampled"]
    assert found["many"] == expected["many"]
    # Of the first rank's generator, whatever those of the others hold.
    assert found["unseeded"] == expected["unseeded"]
    assert found["drawn"]
    for name in ("greedy", "scored"):
        assert len(found[name]) == len(expected[name])
        for ours, theirs in zip(found[name], expected[name], strict=True):
            assert ours["generation"] == theirs["generation"]
            assert ours["finish_reason"] == theirs["finish_reason"]
            assert ours["tokens"] == theirs["tokens"]
            assert ours["logprobs"] == pytest.approx(theirs["logprobs"], abs=2e-4)
    for ours, theirs in zip(found["greedy"], expected["greedy"], strict=True):
        for a, b in zip(ours["top_logprobs"], theirs["top_logprobs"], strict=True):
            assert a == pytest.approx(b, abs=2e-4)


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
            same(found[str(shards)], one)
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
        same(found["whole"], one)
        same(found["half"], one)
        same(found["half again"], one)
        assert (found["still"], found["initialized"]) == (True, False)


def test_replicas_give_all_results_in_order_on_every_rank(world: World, one: dict[str, Any]) -> None:
    for found in world.of("replicas"):
        assert found["replicas"] == 2
        same(found["texts"], one)
        assert found["fewer prompts than replicas"][0]["generation"] == one["greedy"][0]["generation"]


def test_replicas_stream_every_prompt_on_every_rank(world: World, one: dict[str, Any]) -> None:
    for found in world.of("replicas"):
        stream = found["stream"]
        assert sorted(stream) == [str(i) for i in range(len(PROMPTS))]
        for i, expected in enumerate(one["greedy"]):
            assert "".join(text for text, _ in stream[str(i)]) == expected["generation"]
            assert [reason for _, reason in stream[str(i)] if reason] == [expected["finish_reason"]]
            assert stream[str(i)][-1][1] == expected["finish_reason"]


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


def test_a_process_group_of_the_host_program_survives(world: World, one: dict[str, Any]) -> None:
    for found in world.of("host"):
        assert found["text"] == one["greedy"][0]["generation"]
        assert found["total"] == world.size
        assert found["threads"][0] == found["threads"][1]


def test_ranks_share_the_cores(world: World) -> None:
    cores = len(psutil.Process().cpu_affinity())
    for found in world.of("threads"):
        assert found == {"outside": 1, "inside": max(1, cores // world.size), "after": 1}


@pytest.mark.parametrize(
    ("environment", "current", "cores", "expected"),
    [
        ({}, 8, 8, 8),  # plain python: torch's own choice
        ({"OMP_NUM_THREADS": "1"}, 1, 8, 1),  # the user's, without a launcher
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "1"}, 8, 8, 8),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "1", "OMP_NUM_THREADS": "1"}, 1, 8, 1),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}, 1, 8, 4),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "3", "OMP_NUM_THREADS": "1"}, 1, 8, 2),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "8", "OMP_NUM_THREADS": "1"}, 1, 2, 1),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "3"}, 3, 8, 3),
        # set_num_threads in the host program
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}, 2, 8, 2),
    ],
)
def test_threads_per_rank(environment: dict[str, str], current: int, cores: int, expected: int) -> None:
    assert threads_per_rank(environment, current, cores) == expected


def test_the_examples_print_the_same_on_any_number_of_ranks(folder: Path, worlds: Any) -> None:
    """And nothing else stands on stdout, although every launch builds many models."""
    if not (ROOT / "CodeLlama-tiny" / "consolidated.00.pth").exists():
        pytest.skip("CodeLlama-tiny is not there")
    # One thread: where others use the cores too, OpenMP's threads wait for one another by spinning.
    environment = {"OMP_NUM_THREADS": "1"}
    alone = run_ranks("rank_script.py", folder, "examples", ranks=None, environment=environment).ok().stdout
    assert alone.count("\n==================================\n") >= len(EXAMPLES)
    assert len(alone) > 1000
    assert worlds(2).finished.ok().stdout == alone
    assert worlds(4).finished.ok().stdout == alone


# ---- ends that are not happy ----------------------------------------------------------------------


def test_an_error_of_all_ranks_ends_the_launch(folder: Path) -> None:
    """And a number of threads that the user set is kept."""
    environment = {"OMP_NUM_THREADS": "2"}
    arguments = (folder, "threads", "refused")
    finished = run_ranks("rank_script.py", *arguments, ranks=3, environment=environment)
    assert finished.code != 0
    assert "sizes that work: 1, 2, 4" in finished.stderr
    assert finished.stdout == ""
    for rank in range(3):
        seen = json.loads((folder / "out-3" / f"threads.{rank}.json").read_text())
        assert seen == {"outside": 2, "inside": 2, "after": 2}


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ("one_fails", "the host program's own mistake"),
        ("one_exits", "the host program's own mistake"),
        ("one_refused", "temperature is -1"),
    ],
)
def test_an_error_of_one_rank_ends_all(folder: Path, scenario: str, words: str) -> None:
    """Whatever error: the scripts let ranks meet at their end for an hour, where none of them may."""
    finished = run_ranks("rank_script.py", folder, scenario, ranks=2, timeout=4 * SOON)
    assert finished.code != 0
    assert words in finished.stderr
    assert time.time() - (folder / "failed").stat().st_mtime < SOON


@pytest.mark.parametrize("way", ["ctrl-c", "killed"])
def test_a_launch_that_is_stopped_ends_soon_and_whole(folder: Path, way: str) -> None:
    """Ctrl-C in the middle of a generation on 4 ranks; one rank of 2 killed by the system."""
    size = 4 if way == "ctrl-c" else 2
    pids, ended = ([folder / f"{name}.{rank}" for rank in range(size)] for name in ("pid", "ended"))
    for path in (*pids, *ended):
        path.unlink(missing_ok=True)
    with launched("rank_script.py", folder, "endless", ranks=size) as launch:
        launch.wait_for(lambda: all(path.exists() for path in pids))
        stopped = time.monotonic()
        if way == "ctrl-c":
            launch.interrupt()
        else:
            os.kill(int(pids[1].read_text()), signal.SIGKILL)
        finished = launch.finish()
        assert time.monotonic() - stopped < SOON
        assert not any(launch.runs(int(path.read_text())) for path in pids)
    assert finished.code != 0
    if way == "ctrl-c":
        assert all(path.exists() for path in ended), "nobody had to be killed"


def test_ranks_end_with_a_launcher_that_is_killed(folder: Path, tmp_path: Path) -> None:
    """One that idles has nothing else that would tell it."""
    (tmp_path / "s2").symlink_to(folder / "s2")
    environment = {"OMP_NUM_THREADS": "1"}
    with launched("service_script.py", tmp_path, "sleeping", ranks=2, environment=environment) as launch:
        launch.wait_for((tmp_path / "ready").exists)
        assert len(launch.alive()) == 3
        launch.process.kill()
        launch.process.wait()
        end = time.monotonic() + SOON
        while launch.alive() and time.monotonic() < end:
            time.sleep(0.05)
        assert not launch.alive(), "ranks outlived their launcher"
        words = launch.errors()
    # One may have heard from the other before it looked itself.
    assert f": the launcher (process {launch.process.pid}) has ended; ending too" in words
    for rank in range(2):
        assert (tmp_path / f"{rank}.over").exists(), "the service was not ended in order"
