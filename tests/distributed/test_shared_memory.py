"""Laws of collectives through shared memory: sums and copies of any size are right, and no rank waits for one
that will not come, whether its process is gone, a zombie, or alive.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from llama.distributed import shared_memory as shared
from llama.distributed.agreement import Health, Step
from llama.distributed.shared_memory import SharedMemory, share_memory
from llama.errors import RankError
from llama.kernels import compiled

pytestmark = pytest.mark.skipif(compiled.base() is None, reason="needs the compiled file")

SLOT = shared._SLOT
# A guard against a hang: each wait ends within milliseconds, but the cores may be busy.
SOON = 60


@pytest.fixture(autouse=True)
def _no_test_hangs():
    def late(number, frame):
        raise TimeoutError("still waiting for another rank")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SOON)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "memory"
    made.write_bytes(bytes(compiled.base().llama_ranks_bytes(3, SLOT)))
    return str(made)


def on_ranks(path, size, work):
    """Run work(memory, rank) on each rank. Ranks are threads here: they wait outside Python."""
    memories = [SharedMemory(path, rank, size) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, memories, range(size)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [2, 3])
def test_a_sum_of_any_length_is_that_of_all_ranks(path, size, dtype):
    generator = torch.Generator().manual_seed(size)
    lengths = [1, 255, 257, 0, SLOT // dtype.itemsize, SLOT // dtype.itemsize + 3, 5]
    given = [[torch.randn(n, generator=generator).to(dtype) for n in lengths] for _ in range(size)]

    def work(memory, rank):
        found = [x.clone() for x in given[rank]]
        for x in found:
            memory.sum(x)
        return found

    for found in on_ranks(path, size, work):
        for i, x in enumerate(found):
            wanted = torch.stack([each[i].float() for each in given]).sum(0).to(dtype)
            assert torch.equal(x, wanted)


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, SLOT // 8 + 3)])
def test_gather_and_first_give_every_rank_the_same(path, shape):
    given = [torch.arange(torch.Size(shape).numel()).view(shape) + 1000 * rank for rank in range(3)]

    def work(memory, rank):
        x = given[rank].clone()
        everyone = memory.gather(x)
        memory.first(x)
        return everyone, x

    for everyone, x in on_ranks(path, 3, work):
        assert torch.equal(everyone, torch.stack(given))
        assert torch.equal(x, given[0])


def left_alone(memory, words="rank 1 is gone: its process ended without a word"):
    """How many seconds rank 0 waits for rank 1, which does not come."""
    began = time.monotonic()
    with pytest.raises(RankError, match=words):
        memory.sum(torch.ones(4))
    return time.monotonic() - began


@pytest.mark.parametrize("reaped", [True, False])
def test_a_process_that_ended_is_not_waited_for(path, reaped):
    """A parent may be slow to reap it: one that waits for its first rank first never does."""
    memory = SharedMemory(path, 0, 2)
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        shared._RANK.pack_into(memory._memory, shared._HEADER, 0, child.pid, False)
        if reaped:
            child.wait()
        assert left_alone(memory) < SOON


def test_a_rank_that_gave_up_is_not_waited_for_but_what_it_wrote_counts(path):
    memory, other = SharedMemory(path, 0, 2), SharedMemory(path, 1, 2)
    x = torch.ones(4)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(memory.sum, x)
        other.sum(torch.ones(4))
        other.give_up("rank 1 failed: MemoryError: \U0001f995" + 900 * "é")
        done.result(SOON)
    assert x.tolist() == [2.0] * 4
    assert (
        left_alone(memory, "rank 1 failed: MemoryError: \U0001f995é+; this model cannot be used any more")
        < SOON
    )
    # Both keep saying so, at once, and leave their arguments alone.
    for each in (memory, other):
        assert left_alone(each, "rank 1 failed: MemoryError") < SOON


def test_a_rank_that_is_interrupted_in_a_collective_leaves_it_for_good(path, monkeypatch):
    """Ctrl-C while it waits: the other comes later, and must not meet it in the next collective."""
    memory, other = SharedMemory(path, 0, 2), SharedMemory(path, 1, 2)

    def interrupted(pid):
        raise KeyboardInterrupt

    # Called between two tries, where Python handles signals.
    monkeypatch.setattr(shared, "_is_zombie", interrupted)
    with pytest.raises(KeyboardInterrupt):
        memory.sum(torch.ones(4))
    monkeypatch.undo()
    assert left_alone(memory, "rank 0 left a collective: KeyboardInterrupt") < SOON
    x = torch.ones(4)
    other.sum(x)  # rank 0 had written its part before
    assert x.tolist() == [2.0] * 4
    assert left_alone(other, "rank 0 left a collective: KeyboardInterrupt") < SOON


def disagree(memory, rank, works):
    """Run this rank's work -> the text of the RankError that it raises."""
    with pytest.raises(RankError) as raised:
        works[rank](memory)
    with pytest.raises(RankError, match="this model cannot be used any more"):
        memory.sum(torch.ones(4))
    return str(raised.value)


STEP = Step(5, 2, 25)


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (
            lambda m: m.sum(torch.ones(4)),
            lambda m: m.sum(torch.ones(5)),
            ("float32 of 16 bytes", "of 20 bytes"),
        ),
        (lambda m: m.sum(torch.ones(4)), lambda m: m.gather(torch.ones(4)), ("a sum in", "a gather of 16")),
        (lambda m: m.first(torch.ones(4)), lambda m: m.gather(torch.ones(4)), ("a broadcast", "a gather")),
        (
            lambda m: m.sum(torch.ones(SLOT // 4 + 1)),
            lambda m: m.sum(torch.ones(SLOT // 4 + 2)),
            (f"{SLOT + 4:,} bytes", f"{SLOT + 8:,} bytes"),
        ),
        (
            lambda m: (m.begin(STEP), m.sum(torch.ones(4))),
            lambda m: (m.begin(Step(6, 1, 25)), m.sum(torch.ones(4))),
            (
                "2 sequence(s) and 25 token(s), content 0000000000000005",
                "1 sequence(s) and 25 token(s), content",
            ),
        ),
        (
            lambda m: (m.begin(STEP), m.sum(torch.ones(4))),
            lambda m: m.sum(torch.ones(4)),
            ("content 0000000000000005", "rank 2 in a sum in float32 of 16 bytes;"),
        ),
    ],
    ids=["size", "kind", "first", "pieces", "step", "no step"],
)
def test_ranks_that_do_not_do_the_same_all_raise_and_name_both(path, one, other, words):
    def work(memory, rank):
        return disagree(memory, rank, (one, one, other))

    found = on_ranks(path, 3, work)
    assert len(set(found)) == 1
    assert "ranks 0 and 2 do not do the same: rank 0 is in" in found[0]
    for each in words:
        assert each in found[0]


def test_a_step_that_others_have_too_changes_nothing(path):
    def work(memory, rank):
        found = []
        for i in range(5):
            memory.begin(Step(2**63 - 1 - i, i, 2**32 - 1))
            found.append(memory.gather(torch.tensor([rank + i])).tolist())
        return found

    assert on_ranks(path, 3, work) == [[[[i], [i + 1], [i + 2]] for i in range(5)]] * 3


def test_ranks_that_do_not_meet_leave_nothing_behind(monkeypatch, tmp_path):
    """As when one is killed while the others wait for it."""
    made = []
    make = shared._make

    def noted(nbytes):
        made.append(make(nbytes))
        return made[0]

    class Gone:
        """A group whose other ranks leave after the first message."""

        health = Health()
        said: ClassVar[list[bytes]] = []

        def gather_bytes(self, data):
            self.said.append(data)
            if len(self.said) == 2:
                raise RankError("the connection was closed by the peer")
            return [data, b""]

    monkeypatch.setattr(shared, "_make", noted)
    with pytest.raises(RankError, match="closed by the peer"):
        share_memory(Gone(), 0, 2, True)
    assert not Path(made[0]).exists()


def test_the_header_is_that_of_the_compiled_file(path):
    """Python reads the header that ranks.c writes."""
    SharedMemory(path, 1, 3)
    raw = Path(path).read_bytes()
    number, pid, gave_up = shared._RANK.unpack_from(raw, shared._HEADER)
    assert (number, pid, gave_up) == (0, os.getpid(), False)
    assert compiled.base().llama_ranks_bytes(3, 0) == 3 * shared._HEADER
