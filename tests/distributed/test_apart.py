"""Laws of ranks that diverge: if one does something else, or fails alone, all raise at once, and say who and
why. None computes with data of another step, now or later.

A launch takes seconds, so one runs all scenarios of apart_script.py.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from once import once
from ranks import ROOT, run_forked

from llama import errors
from llama.api.replicas import decode, encode
from llama.api.results import Output, StreamDelta
from llama.distributed.agreement import Health, UnexplainedError
from llama.distributed.groups import Group
from llama.engine import Counts, Request, Times, TokenScore
from llama.engine.step_digest import digest_of
from llama.sampling import GREEDY, SamplingParams

# A guard: a rank hears of another within 0.1 s (replicas: 2 s), and apart_script.py would wait an hour.
SOON = 60.0
NO_MORE = "; this model cannot be used any more"


@pytest.fixture(scope="module")
def launch(folder: Path) -> Any:
    """What each rank found, by the number of ranks."""

    def run() -> dict[str, list[Any]]:
        jobs = [(size, "apart_script.py", folder) for size in (2, 4)]
        for report in run_forked(folder / "apart", *jobs):
            assert set(report["codes"]) == {0}, report
        return {str(size): [_result(folder, size, rank) for rank in range(size)] for size in (2, 4)}

    found = once(folder / "apart.json", run)
    return lambda size: found[str(size)]


def _result(folder: Path, size: int, rank: int) -> Any:
    return json.loads((folder / f"apart-{size}" / f"{rank}.json").read_text())


@pytest.fixture(params=[2, 4])
def found(launch: Any, request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return launch(request.param)


def raised(call: list[Any], kind: str, *words: str) -> None:
    assert call[0] == kind, call
    for each in words:
        assert each in call[1]
    assert call[2] < SOON


WAYS = ("whole", "over_sockets")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scenario", ["order", "limit"])
def test_ranks_with_other_requests_all_raise_and_go_on_raising(found: Any, way: str, scenario: str) -> None:
    last = len(found) - 1
    for rank in found:
        for call in rank[way][scenario]:
            raised(call, "RankError", f"ranks 0 and {last} do not do the same", "4 sequence(s)", NO_MORE)
            assert call[1] == found[0][way][scenario][0][1]


@pytest.mark.parametrize("way", WAYS)
def test_a_call_that_only_one_rank_begins_ends_on_all(found: Any, way: str) -> None:
    """The rank that begins a request first asks whether the model was changed; the others do not."""
    last = len(found) - 1
    for rank in found:
        for call in rank[way]["begins"]:
            raised(call, "RankError", f"ranks 0 and {last} do not do the same", NO_MORE)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("scenario", "first", "own", "words"),
    [
        ("failure", False, "MemoryError", "failed: MemoryError: no room for this step"),
        ("interrupt", True, "KeyboardInterrupt", "failed: KeyboardInterrupt"),
        ("between", True, "KeyboardInterrupt", "failed: KeyboardInterrupt"),
        ("direct", False, "MemoryError", "failed: MemoryError: no room for this step"),
    ],
)
def test_a_step_that_fails_on_one_rank_fails_on_all_with_its_reason(
    found: Any, way: str, scenario: str, first: bool, own: str, words: str
) -> None:
    alone = 0 if first else len(found) - 1
    for rank, seen in enumerate(found):
        call, later = seen[way][scenario]
        if rank == alone:
            raised(call, own)
        else:
            raised(call, "RankError", f"rank {alone} {words}", NO_MORE)
        raised(later, "RankError", f"rank {alone} {words}", NO_MORE)


@pytest.mark.parametrize("way", WAYS)
def test_nobody_waits_for_a_rank_that_gave_its_model_back(found: Any, way: str) -> None:
    last = len(found) - 1
    for rank, seen in enumerate(found):
        for call in seen[way]["fewer"][rank == last :]:
            raised(call, "RankError", f"rank {last} has closed this model", NO_MORE)


def test_a_model_that_is_built_again_is_as_good_as_ever(found: Any) -> None:
    for seen in found:
        assert seen["again"][0] == "result"
        assert seen["again"][1] == seen["replicas"]["before"][1]


@pytest.mark.parametrize("way", ["run", "stream"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("MemoryError", "replica 1 failed: MemoryError: none left"),
        ("DeviceError", "replica 1 failed: DeviceError: GPU full"),
        ("KeyboardInterrupt", "replica 1 failed: KeyboardInterrupt"),
        ("NumericsError", "a NaN"),
    ],
)
def test_an_error_of_one_replica_reaches_all_and_the_next_call_is_right(
    launch: Any, way: str, name: str, words: str
) -> None:
    first, last = (seen["replicas"] for seen in launch(2))
    raised(first[f"{way} {name}"], "NumericsError" if name == "NumericsError" else "RankError")
    assert first[f"{way} {name}"][1] == words
    raised(last[f"{way} {name}"], name)
    for seen in (first, last):
        assert seen[f"{way} after {name}"][1] == seen["before"][1]


def test_a_replica_that_lost_a_rank_is_of_no_use_to_any(launch: Any) -> None:
    reason = "rank 1 of replica 1 failed: MemoryError: none left"
    found = [seen["replicas"] for seen in launch(4)]
    raised(found[3]["run MemoryError"], "MemoryError")
    raised(found[2]["run MemoryError"], "RankError", reason, NO_MORE)
    raised(found[1]["run MemoryError"], "RankError", "replica 1 failed: MemoryError: none left")
    raised(found[0]["run MemoryError"], "RankError", reason)
    for seen in found:
        for way in ("run after MemoryError", "stream NumericsError"):
            raised(seen[way], "RankError", reason, NO_MORE)


@pytest.mark.parametrize(
    ("scenario", "one", "other"),
    [
        ("early", "gather 2 of call 1", "gather 1 of call 2"),
        ("other_prompts", "gather 1 of call 1", "gather 1 of call 1"),
    ],
)
def test_replicas_at_different_places_all_raise(found: Any, scenario: str, one: str, other: str) -> None:
    for seen in found:
        for call in seen["replicas"][scenario]:
            raised(call, "RankError", f"replica 0 is at {one} ", f"replica 1 at {other} ", NO_MORE)


def test_ctrl_c_while_a_replica_waits_for_another_ends_their_work_together(found: Any) -> None:
    reason = "replica 0 left a collective: KeyboardInterrupt"
    for rank, seen in enumerate(found):
        call, later = seen["replicas"]["gather_interrupted"]
        if rank < len(found) // 2:
            raised(call, "KeyboardInterrupt")
        else:
            raised(call, "RankError", reason, NO_MORE)
        raised(later, "RankError", reason, NO_MORE)


# ---- what travels --------------------------------------------------------------------------------


floats = st.floats(allow_nan=False)
scores = st.lists(st.builds(TokenScore, floats, st.lists(st.tuples(st.integers(), floats)).map(tuple)))
ids = st.lists(st.integers(0, 2**31))
places = st.tuples(st.integers(0, 99), st.integers(0, 99))
texts = st.text(st.characters())
outputs = st.tuples(places, st.builds(Output, ids.map(tuple), ids, texts, scores, scores, texts))
numbers = st.integers(0, 2**40)
maybe = st.none() | floats
deltas = st.builds(
    StreamDelta,
    *(numbers, numbers, texts, st.none() | texts),
    st.none() | st.builds(Counts, numbers, numbers, numbers),
    st.none() | st.builds(Times, floats, maybe, maybe, maybe),
    ids.map(tuple),
    scores.map(tuple),
)


@settings(deadline=None, max_examples=50)
@given(st.none() | st.lists(outputs) | st.lists(deltas))
def test_results_arrive_as_they_were(items: Any) -> None:
    found, error = decode(encode(items, None), 3)
    assert found == items
    assert error is None


@pytest.mark.parametrize("name", errors.__all__)
def test_errors_of_this_package_arrive_as_what_they_are(name: str) -> None:
    kind = getattr(errors, name)
    error = kind("<tag>", 3) if name == "UnsafeTagError" else kind("row 3: é\ud800")
    _, made = decode(encode([], error), 3)
    if name == "UnsafeTagError":  # it is made of other things than its text
        assert type(made) is errors.RankError
        assert str(made) == f"replica 3 failed: UnsafeTagError: {error}"
    else:
        assert type(made) is kind
        assert str(made) == str(error)


@pytest.mark.parametrize("name", ["SystemExit", "eval", "__class__", "annotations", "Exception"])
def test_no_name_that_arrives_is_looked_up_but_those_of_errors(name: str) -> None:
    packet = json.dumps([None, [name, "text", f"{name}: text"]]).encode()
    assert repr(decode(packet, 1)) == repr((None, errors.RankError(f"replica 1 failed: {name}: text")))


def test_a_request_s_digest_holds_what_steers_its_steps_and_nothing_else() -> None:
    """Ranks must agree on the steps, but may have different seeds."""
    request = Request((1, 2, 3), 5, GREEDY, stop=("é",), stop_ids=frozenset({2, 7, 1}))
    free = {"sampling": SamplingParams(temperature=1.0), "seed": 3, "row": 4}
    steering = {
        "prompt": (1, 2, 4),
        "max_new_tokens": 6,
        "min_new_tokens": 1,
        "stop_ids": frozenset({2, 7}),
        "stop": ("e",),
        "start_of_text": True,
        "n": 2,
        "first_sample": 1,
        "top": 1,
        "score_prompt": True,
        "speculate": False,
        "prediction": (4,),
        "streaming": False,
    }
    assert {*free, *steering} == {field.name for field in dataclasses.fields(Request)}
    known = {digest_of([request])}
    for name, value in free.items():
        assert digest_of([dataclasses.replace(request, **{name: value})]) in known
    for name, value in steering.items():
        digest = digest_of([dataclasses.replace(request, **{name: value})])
        assert digest not in known, name
        assert 0 <= digest < 2**63
        known.add(digest)


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    monkeypatch.setattr(dist, "get_world_size", lambda raw: 2)
    return Group(object(), Health("rank 0"))


def test_a_rank_that_is_gone_without_a_word_is_a_named_error(group: Group, monkeypatch: Any) -> None:
    def gone(*args: Any, **more: Any) -> None:
        raise RuntimeError("[pair.cc:553] Connection closed by peer\nmore")

    monkeypatch.setattr(dist, "all_reduce", gone)
    with pytest.raises(
        UnexplainedError, match=r"another rank is gone.*Connection closed by peer\); this model"
    ):
        group.all_reduce(torch.ones(1))
    monkeypatch.undo()
    with pytest.raises(errors.RankError, match="Connection closed by peer"):
        group.broadcast(torch.ones(1))


def test_memory_that_runs_out_in_a_collective_is_this_rank_s_own_failure(
    group: Group, monkeypatch: Any
) -> None:
    def full(*args: Any, **more: Any) -> None:
        raise torch.OutOfMemoryError("the GPU is full")

    monkeypatch.setattr(dist, "all_reduce", full)
    with pytest.raises(torch.OutOfMemoryError, match="the GPU is full"):
        group.all_reduce(torch.ones(1))
    with pytest.raises(errors.RankError, match="rank 0 left a collective: OutOfMemoryError; this model"):
        group.all_reduce(torch.ones(1))


def test_a_reason_is_bounded_and_can_be_printed() -> None:
    health = Health()
    health.fail("rank 1 failed: \x1b[2J" + 1000 * "é")
    health.fail("a later one")
    assert str(health.error()).startswith("rank 1 failed: \ufffd[2Jéé")
    assert len(str(health.error()).encode()) < 1000


COLLECTIVES = {name for name in dir(dist) if "object" in name}


def pickles(source: str) -> set[str]:
    """The names in a module that could unpickle something."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute | ast.Name):
            names.add(node.attr if isinstance(node, ast.Attribute) else node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {each.name for each in node.names} | {getattr(node, "module", None) or ""}
    return names & {*COLLECTIVES, "pickle", "cPickle", "dill", "marshal", "shelve", "Unpickler"}


def test_nothing_is_unpickled_from_another_rank() -> None:
    """Or anyone who reaches a port of the launch could run code. Checkpoints have readers of their own.

    apart_script.py checks that torch's collectives do not pickle either: there its picklers raise.
    """
    assert {"broadcast_object_list", "all_gather_object"} <= COLLECTIVES
    assert pickles("dist.all_gather_object(x, y)\nfrom pickle import loads") == {
        "all_gather_object",
        "pickle",
    }
    modules = [path for path in (ROOT / "llama").rglob("*.py") if "checkpoint" not in path.parts]
    assert len(modules) > 40
    for path in modules:
        found = pickles(path.read_text(encoding="utf-8"))
        # This one sends its own code into the sandbox, and reads nothing back that way.
        sends = {"marshal"} if path.parts[-2:] == ("sandbox", "launch.py") else set()
        assert found == sends, path
