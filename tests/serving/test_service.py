"""Laws of the service: ranks never diverge, the number of ranks changes no result, and whatever happens to one
rank, all of them end, soon and with the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import os
import queue
import signal
import socket
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import HANGS, launched
from service_script import NAN_ID, SCENARIOS
from test_async_engine import LIMIT, TOKENIZER, alone, ask, collect, ids, run
from tiny_llama import tiny_model
from tiny_models import SHAPE, random_weights, save_checkpoint
from tiny_tokenizers import tiny_model_path

from llama.distributed.agreement import UnexplainedError
from llama.distributed.parallel import Parallel
from llama.engine import Engine, FinishReason, Request
from llama.errors import RankError, RequestError
from llama.sampling import GREEDY, SamplingParams
from llama.serving import AsyncEngine, channel, follow
from llama.serving import handshake as greeting
from llama.serving.protocol import Add, Cancel, Pause, Resume, Stop, decode, encode
from llama.serving.ranks import Inbox, lead

CPU = torch.device("cpu")
# From a signal to the end of the service on every rank that is left. Takes 0.02 s; but a rank in the middle of a step
# hears of another only when that one's interpreter has ended, which takes several where the cores are shared.
SOON = 30.0
# Below the 30 s after which torchrun kills what has not ended by itself.
PATIENCE = 28.0


# ---- events ------------------------------------------------------------------------------------------


requests = st.builds(
    Request,
    st.lists(st.integers(0, 32015), min_size=1, max_size=20).map(tuple),
    st.integers(0, 10_000),
    st.builds(
        SamplingParams,
        st.floats(0, 9),
        st.floats(0.01, 1),
        st.integers(0, 99),
        st.floats(0, 1),
        st.floats(0.1, 9),
    ),
    stop_ids=st.frozensets(st.integers(0, 32015)),
    stop=st.lists(st.text(min_size=1)).map(tuple),
    start_of_text=st.booleans(),
    seed=st.integers(0, 2**200),
    n=st.integers(1, 9),
    first_sample=st.integers(0, 9),
    top=st.integers(0, 9),
    score_prompt=st.booleans(),
    row=st.integers(0, 9),
)
tickets = st.integers(0, 2**60)
events = st.one_of(
    st.builds(Add, tickets, requests),
    st.builds(Cancel, tickets),
    st.builds(Pause, tickets),
    st.builds(Resume, tickets),
    st.builds(Stop, st.booleans(), st.none() | st.text()),
)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(events, max_size=3))
def test_events_arrive_as_they_were(sent):
    assert decode(encode(sent), SamplingParams) == sent


def test_every_field_of_a_request_travels():
    """A field of a kind that JSON does not keep would fail here, not on the second rank of a user."""
    request = Request((1, 2), 3, GREEDY)
    for field in dataclasses.fields(request):
        restored = decode(encode([Add(0, request)]), SamplingParams)[0].request
        assert type(getattr(restored, field.name)) is type(getattr(request, field.name))


def test_no_events_are_no_bytes_and_integers_of_numpy_are_integers():
    assert encode([]) == b""
    sent = Add(1, Request(tuple(np.arange(3)), 5, GREEDY, stop_ids=frozenset(np.arange(2))))
    assert decode(encode([sent]), SamplingParams) == [
        Add(1, Request((0, 1, 2), 5, GREEDY, frozenset({0, 1})))
    ]


# ---- pause -------------------------------------------------------------------------------------------


def test_a_paused_request_waits_where_it_is_and_goes_on():
    engine, request = Engine(tiny_model(max_batch_size=2), TOKENIZER, step_tokens=4), ask(10, 12)
    number, other, text = engine.add(request), engine.add(ask(6, 3)), ""
    for step in range(60):
        if step in (1, 20):
            engine.pause(number)
            engine.pause(number)
        if step in (10, 30):
            assert not engine.unfinished
            assert engine.step() == []
            engine.resume(number)
        text += "".join(delta.text for delta in engine.step() if delta.key[0] == number)
    assert text == alone(request)[0][0]
    engine.resume(number)
    engine.resume(other)
    assert not engine.unfinished
    assert not engine.scheduler.waiting


# ---- ranks that are threads ----------------------------------------------------------------------------


class ThreadRank:
    """Stands in for `Parallel`: ranks that are threads, each with the whole model."""

    replica, replicas, group, replica_group = 0, 1, None, None
    patience = LIMIT

    def __init__(self, rank, queues):
        self.rank, self.size, self.queues = rank, len(queues), queues

    def broadcast(self, x):
        if self.rank:
            try:
                return x.copy_(self.queues[self.rank].get(timeout=self.patience))
            except queue.Empty as error:
                raise UnexplainedError("another rank is gone") from error
        for each in self.queues[1:]:
            each.put(x.clone())
        return x

    def on_any(self, flag, device):
        """Nobody changes a model here."""
        return flag

    def begin(self, step, device):
        """All have the same: the law of another test."""

    def failed(self, error):
        """The others have their patience."""
        return error if isinstance(error, RankError) else RankError(f"rank {self.rank} failed: {error}")


def ranks(count, batch=4, **more):
    """An engine for each rank, which notes what its steps yield."""
    queues, engines = [queue.Queue() for _ in range(count)], []
    for rank in range(count):
        made = tiny_model(max_batch_size=batch)
        made.new_cache = tiny_model(max_batch_size=batch).new_cache  # of a model that is not split
        made.parallel = ThreadRank(rank, queues)
        engine = Engine(made, TOKENIZER, **more)
        engine.seen = []
        engine.step = functools.partial(noting, engine, engine.step)
        engines.append(engine)
    return engines


def noting(engine, step):
    deltas = step()
    engine.seen.append([(delta.key, delta.text, delta.finish_reason) for delta in deltas])
    return deltas


@contextlib.contextmanager
def following(engines):
    """The other ranks, in threads -> what each raised, at the end."""
    ends = [None] * len(engines)

    def work(rank):
        try:
            follow(engines[rank])
        except BaseException as error:
            ends[rank] = error

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(1, len(engines))]
    for thread in threads:
        thread.start()
    yield ends
    for thread in threads:
        thread.join(LIMIT)
    assert not any(thread.is_alive() for thread in threads)


@settings(deadline=None, derandomize=True, max_examples=8)
@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.integers(0, 14), st.integers(1, 3), st.none() | st.integers(0, 9)),
        min_size=1,
        max_size=9,
    ),
    st.sampled_from([2, 3]),
    st.sampled_from([1, 7, 1024]),
    st.sampled_from([1, 3, 256]),
)
def test_ranks_never_diverge(rows, count, step_tokens, unread):
    """Callers that come, read slowly and leave: every rank takes the same steps, and no result changes."""
    engines = ranks(count, step_tokens=step_tokens)

    async def caller(front, i, row):
        length, new, n, leaves = row
        request = ask(ids(length, i), new, SamplingParams(temperature=1.1), seed=i, n=n)
        if leaves is None:
            assert await collect(front, request) == alone(request)
            return
        stream = front.stream(request)
        for _ in range(leaves):
            await anext(stream, None)
            await asyncio.sleep(0)
        await stream.aclose()

    async def main():
        async with AsyncEngine(engines[0], unread=unread) as front:
            await asyncio.gather(*(caller(front, i, row) for i, row in enumerate(rows)))

    with following(engines) as ends:
        run(main())
    assert ends == [None] * count
    for engine in engines:
        assert engine.seen == engines[0].seen
        assert not engine.scheduler.running
        assert not engine.scheduler.waiting


def test_a_request_that_add_refuses_is_refused_on_all_ranks(monkeypatch):
    engines = ranks(2)
    monkeypatch.setattr(engines[0], "check", lambda request: None)

    async def main():
        async with AsyncEngine(engines[0]) as front:
            monkeypatch.undo()
            with pytest.raises(RequestError, match="max_new_tokens is -3"):
                await front.complete(Request((1,), -3, GREEDY))
            assert await collect(front, ask(5, 6)) == alone(ask(5, 6))

    monkeypatch.setattr(AsyncEngine, "stream", lambda self, request: self._read(request))
    with following(engines) as ends:
        run(main())
    assert ends == [None, None]


@pytest.mark.parametrize("broken", [0, 1])
def test_a_step_that_fails_on_one_rank_ends_the_service_on_all(broken, monkeypatch):
    """The ranks that were fine hear the reason when they next look."""
    engines = ranks(2)
    monkeypatch.setattr("llama.serving.ranks.REASON_SECONDS", LIMIT)  # rank 0 says it within a second or so

    def failing():
        raise ValueError("no such device")

    async def main():
        front = AsyncEngine(engines[0])
        await front.complete(ask(5, 1))
        # From now on as a collective that ends with the peer's process. Before, the ranks had still to meet.
        monkeypatch.setattr(ThreadRank, "patience", 0.1)
        engines[broken].step = failing
        # Ranks that are threads do not wait for one another in a step: rank 0 may first end the request.
        with contextlib.suppress(RankError):
            await front.complete(ask(5, 40))
        await front.ended()
        assert f"rank {broken} failed" in str(front.failure)
        with pytest.raises(RankError, match="no such device"):
            front.stream(ask(5, 40))
        await front.close()

    with following(engines) as ends:
        run(main())
    assert isinstance(ends[1], RankError)
    assert f"rank {broken} failed" in str(ends[1])
    assert all(not engine.scheduler.running for engine in engines)


# ---- the connection ------------------------------------------------------------------------------------


def test_what_comes_in_behind_the_end_is_not_left_in_the_engine():
    """A caller on another loop that asks while the front closes."""
    engine, inbox = Engine(tiny_model(), TOKENIZER), Inbox()
    for event in (Add(0, ask(5, 50)), Stop(), Add(1, ask(5, 50))):
        inbox.put(event)
    lead(engine, inbox, lambda results: None)
    assert not engine.unfinished
    assert not engine.scheduler.running


@contextlib.contextmanager
def connected(count=2):
    queues = [queue.Queue() for _ in range(count)]
    ends = [None] * count

    def call(rank):
        make = channel.follow_channel if rank else channel.lead_channel
        ends[rank] = make(ThreadRank(rank, queues), CPU)

    threads = [threading.Thread(target=call, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    yield ends
    for end in ends:
        end.close()


def test_packets_of_any_size_arrive_in_order():
    packets = [b"", b"x", bytes(3_000_000), b"", b"end"]
    with connected(3) as (leader, *followers):
        sending = threading.Thread(target=lambda: [leader.send(packet) for packet in packets])
        sending.start()
        for follower in followers:
            assert [follower.receive() for _ in packets] == packets
        sending.join()
        leader.check()


def test_one_rank_needs_no_connection():
    alone = channel.lead_channel(Parallel(), CPU)
    alone.send(b"x")
    alone.check()
    assert alone.reason() is None
    assert not alone.peers


def test_a_rank_that_hangs_up_is_noticed_and_named():
    with connected(3) as (leader, first, second):
        second.close()
        with pytest.raises(RankError, match="rank 2 is gone"):
            leader.check()
        leader.peers.pop(2).close()
        leader.send(b"not read")
        first.send("rank 1 has its reasons")
        first.close()
        assert str(leader.reason()) == "rank 1 has its reasons"


def test_a_first_rank_that_hangs_up_is_noticed():
    with connected() as (leader, follower):
        leader.close()
        with pytest.raises(RankError, match="rank 0 is gone"):
            follower.receive()


def test_a_follower_can_hang_up_and_can_wait_for_a_while():
    with connected() as (leader, follower):
        with pytest.raises(TimeoutError):
            follower.receive(0.01)

        def receive():
            with pytest.raises(RankError, match="rank 0 is gone"):
                follower.receive()

        waiting = threading.Thread(target=receive, daemon=True)
        waiting.start()
        follower.hang_up("it has to go")
        waiting.join(LIMIT)
        assert not waiting.is_alive()
        with pytest.raises(RankError, match="it has to go"):
            leader.check()


def silent(port):
    return socket.create_connection(port)


def one_byte(port):
    line = socket.create_connection(port)
    line.sendall(b"x")
    return line


def wrong_proof(port):
    line = socket.create_connection(port)
    line.sendall(bytes(36))
    line.settimeout(LIMIT)
    assert line.recv(64)
    line.sendall(bytes(32))
    return line


@pytest.mark.parametrize("strangers", [[silent] * 4, [one_byte], [wrong_proof], [silent] * 150], ids=len)
def test_strangers_keep_no_rank_waiting(monkeypatch, strangers):
    """Whoever finds the port may say nothing, too little or the wrong thing; the ranks meet all the same."""
    made, called = [], []
    create = socket.create_server

    def noticed(*args, **kwargs):
        made.append(create(*args, **kwargs))
        return made[0]

    def with_strangers(line, *more):
        if not called:
            called.extend(stranger(made[0].getsockname()) for stranger in strangers)
        return introduce(line, *more)

    introduce = channel.introduce
    monkeypatch.setattr(socket, "create_server", noticed)
    monkeypatch.setattr(channel, "introduce", with_strangers)
    # A stranger's time never ends, the ranks' soon does: none of them may wait for him.
    monkeypatch.setattr(greeting, "_SECONDS", 10 * LIMIT)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with connected(3) as (leader, *followers):
        assert list(leader.peers) == [1, 2]
        leader.send(b"x")
        assert [follower.receive() for follower in followers] == [b"x"] * 2
        # He gets nothing but a number and a proof that is worth nothing elsewhere.
        for line in called:
            line.settimeout(LIMIT)
            with contextlib.suppress(ConnectionError):
                assert line.recv(65) == b""
            line.close()


def test_strangers_hold_only_so_many_lines():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        door = greeting._Door(server)
        lines = []
        for _ in range(100):
            lines.append(socket.create_connection(server.getsockname()))
            door.wait(time.monotonic() + LIMIT)
        assert len(door.callers) == 64
        # The oldest were sent away.
        assert [line.recv(1) for line in lines[:36]] == [b""] * 36
        for line in (*lines, *(caller.line for caller in door.callers)):
            line.close()
        door.selector.close()


def test_a_stranger_has_his_time_and_no_longer(monkeypatch):
    """One that drips bytes is sent away as one that is silent."""
    with socket.create_server(("127.0.0.1", 0)) as server, silent(server.getsockname()) as line:
        door = greeting._Door(server)
        assert door.wait(time.monotonic() + LIMIT) == []
        (caller,) = door.callers
        until = caller.until
        for _ in range(5):
            line.sendall(b"x")
            assert door.wait(time.monotonic() + LIMIT) == [caller]
            assert not caller.hear(b"secret")
        assert caller.until == until
        line.sendall(b"x")
        monkeypatch.setattr(greeting.time, "monotonic", lambda: until)
        assert door.wait(until + LIMIT) == []
        assert not door.callers
        door.selector.close()


@pytest.mark.parametrize("answer", [b"", b"!", bytes(64), bytes(1000)], ids=len)
def test_a_rank_tells_a_stranger_nothing(monkeypatch, answer):
    """Something else that listens at the address of rank 0 learns neither the secret nor a proof."""
    monkeypatch.setattr(greeting, "_SECONDS", 0.1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(answer)
        with contextlib.suppress(OSError):
            assert not greeting.introduce(ours, b"secret", 1)
        assert len(theirs.recv(1000)) == 36
        ours.close()
        with contextlib.suppress(ConnectionResetError):
            assert theirs.recv(1000) == b""


def test_a_rank_that_was_sent_away_calls_again(monkeypatch):
    tries = []
    introduce = channel.introduce

    def dropped(line, *more):
        tries.append(line)
        if len(tries) < 3:
            raise ConnectionResetError
        return introduce(line, *more)

    monkeypatch.setattr(channel, "introduce", dropped)
    with connected(2) as (leader, follower):
        leader.send(b"x")
        assert follower.receive() == b"x"
    assert len(tries) == 3


def test_a_rank_that_does_not_come_is_named(monkeypatch):
    monkeypatch.setattr(channel, "_CONNECT_SECONDS", 0.05)
    with pytest.raises(RankError, match=r"rank\(s\) \[1, 2\] did not reach rank 0 at .* within"):
        channel.lead_channel(ThreadRank(0, [queue.Queue() for _ in range(3)]), CPU)


# ---- ranks that are processes ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Every scenario run once. The ranks are no torchrun's, so nobody helps them to end."""
    folder = tmp_path_factory.mktemp("service")
    weights = random_weights(SHAPE, TOKENIZER.n_words)
    save_checkpoint(folder / "s2", SHAPE, weights, tiny_model_path(), 2)
    weights["tok_embeddings.weight"][NAN_ID] = torch.nan
    save_checkpoint(folder / "nan", SHAPE, weights, tiny_model_path(), 2)
    with launched(
        "service_script.py", folder, *SCENARIOS, ranks=None, environment={"OMP_NUM_THREADS": "1"}
    ) as launch:
        launch.finish(4 * HANGS).ok()
    return folder


class Ended:
    """How a scenario ended."""

    def __init__(self, folder, name):
        self.folder, self.name = folder / name, name
        self.codes, self._seconds = json.loads((folder / f"{name}.json").read_text()).values()

    @property
    def seconds(self):
        """From the signal to the end of the service on the last of the ranks that were left."""
        assert len(self._seconds) == len([code for code in self.codes if code != -signal.SIGKILL])
        return max(self._seconds)

    def output(self, rank, kind="err"):
        return (self.folder / f"{rank}.{kind}").read_text()

    def found(self, rank=0):
        assert set(self.codes) == {0}, "".join(self.output(i) for i in range(len(self.codes)))
        return json.loads((self.folder / f"{rank}.json").read_text())


def test_two_ranks_give_what_one_gives(folder):
    one, two = Ended(folder, "alone").found(), Ended(folder, "together").found()
    assert one["service"]["results"] == one["service"]["again"]
    assert two["service"]["results"] == two["service"]["again"] == one["service"]["results"]
    assert two["afterwards"] == one["afterwards"]
    assert Ended(folder, "together").found(1)["afterwards"] == one["afterwards"]
    assert len({json.dumps(each) for each in one["service"]["results"]}) > 20


def test_logits_that_are_not_finite_leave_all_ranks_serving(folder):
    for name in ("alone", "together"):
        found = Ended(folder, name).found()["numerics"]
        assert "logits are not finite" in found["error"]
        assert found["same"] is True


def test_idle_ranks_use_no_core_and_wake_at_once(folder):
    for name in ("alone", "together"):
        found = Ended(folder, name).found()["service"]["idle"]
        assert max(found["cpu"]) < 0.3
        assert min(found["wakes"]) < 5


def test_replicas_are_refused_on_every_rank(folder):
    for rank in range(2):
        assert "2 replicas of 1 rank(s)" in Ended(folder, "replicas").found(rank)


@pytest.mark.parametrize("when", ["idle", "busy"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_ends_the_other(folder, when, victim):
    ended, left = Ended(folder, f"{when}_without_{victim}"), 1 - victim
    assert ended.codes[victim] == -signal.SIGKILL
    assert ended.codes[left] == 1
    assert ended.seconds < SOON
    assert f"RankError: rank {victim} is gone" in ended.output(left)


@pytest.mark.parametrize("broken", [0, 1])
def test_a_rank_whose_step_fails_ends_all_with_its_reason(folder, broken):
    ended = Ended(folder, f"fails_on_{broken}")
    assert ended.codes == [1, 1]
    reason = (
        f"rank {broken} failed: ValueError: the device of rank {broken} fell off; this model cannot be used"
    )
    for rank in range(2):
        assert f"RankError: {reason}" in ended.output(rank)
    assert ended.output(0, "out").startswith(f"RankError {reason}")


def test_nobody_waits_for_the_end_of_a_rank_whose_step_failed(folder):
    ended = Ended(folder, "outlived")
    for rank in range(2):
        assert "rank 1 failed: ValueError" in ended.found(rank)


def test_sigterm_ends_all_requests_with_a_reason(folder):
    ended = Ended(folder, "sigterm")
    assert ended.codes == [0, 0]
    assert ended.seconds < SOON
    assert ended.output(0, "out").split() == ["cancelled"] * 20


def test_sigterm_of_one_rank_ends_all_with_a_reason(folder):
    ended = Ended(folder, "sigterm_of_one")
    assert ended.codes == [1, 1]
    assert ended.seconds < SOON
    for rank in range(2):
        assert "RankError: rank 1 was told to end" in ended.output(rank)


def test_a_service_that_is_cancelled_leaves_no_rank_in_it(folder):
    ended = Ended(folder, "cancelled")
    for rank in range(2):
        assert ended.found(rank) == [Ended(folder, "alone").found()["afterwards"]] * 2


@pytest.mark.parametrize("way", ["sigterm", "killed"])
def test_under_torchrun(folder, way, tmp_path):
    (tmp_path / "s2").symlink_to(folder / "s2")
    with launched(
        "service_script.py", tmp_path, "endless", ranks=2, environment={"OMP_NUM_THREADS": "1"}
    ) as launch:
        launch.wait_for((tmp_path / "ready").exists)
        began = time.monotonic()
        if way == "sigterm":
            launch.process.terminate()
        else:
            os.kill(int((tmp_path / "1.pid").read_text()), signal.SIGKILL)
        finished = launch.finish()
        assert time.monotonic() - began < PATIENCE
        assert not any(launch.runs(int(path.read_text())) for path in tmp_path.glob("*.pid"))
    assert finished.code != 0
    if way == "sigterm":
        for rank in range(2):
            assert float((tmp_path / f"{rank}.over").read_text()) - began < SOON
        assert finished.stdout.split() == [FinishReason.CANCELLED.value] * 20
