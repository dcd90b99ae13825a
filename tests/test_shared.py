"""Laws of the ranks' shared memory: sums and copies are right whatever their size, and a rank that does not come
ends the wait of the others, whether its process is gone, not yet looked after by its parent, or alive.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from llama import native, shared
from llama.shared import SharedMemory, meet

pytestmark = pytest.mark.skipif(native.ranks_library() is None, reason="needs the compiled file")

SLOT = shared._SLOT


@pytest.fixture(autouse=True)
def _no_test_hangs():
    def late(number, frame):
        raise TimeoutError("still waiting for another rank")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "memory"
    made.write_bytes(bytes(native.ranks_library().llama_ranks_bytes(3, SLOT)))
    return str(made)


def on_ranks(path, size, work):
    """work(memory, rank) of each rank, which are threads here: the waits are outside Python."""
    memories = [SharedMemory(path, rank, size) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(work, memories, range(size)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
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


def left_alone(memory):
    """How long rank 0 waits for rank 1."""
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="rank 1 of this model is gone"):
        memory.sum(torch.ones(4))
    return time.monotonic() - began


@pytest.mark.parametrize("reaped", [True, False])
def test_a_process_that_ended_is_not_waited_for(path, reaped):
    """Its parent may be slow to look after it: one that waits for its first rank first never does."""
    memory = SharedMemory(path, 0, 2)
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        shared._RANK.pack_into(memory._memory, shared._HEADER, 0, child.pid, False)
        if reaped:
            child.wait()
        assert left_alone(memory) < 5


def test_a_rank_that_gave_up_is_not_waited_for_but_what_it_wrote_counts(path):
    memory, other = SharedMemory(path, 0, 2), SharedMemory(path, 1, 2)
    x = torch.ones(4)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(memory.sum, x)
        other.sum(torch.ones(4))
        other.give_up()
        done.result(5)
    assert x.tolist() == [2.0] * 4
    assert left_alone(memory) < 5


def test_ranks_that_do_not_meet_leave_nothing_behind(monkeypatch, tmp_path):
    """As where one is killed while the others wait for it."""
    made = []
    make = shared._make

    def noted(nbytes):
        made.append(make(nbytes))
        return made[0]

    def gone(*args, **kwargs):
        raise RuntimeError("the connection was closed by the peer")

    monkeypatch.setattr(shared, "_make", noted)
    monkeypatch.setattr(dist, "get_global_rank", lambda group, rank: 0)
    monkeypatch.setattr(dist, "broadcast_object_list", lambda *args, **kwargs: None)
    monkeypatch.setattr(dist, "all_gather_object", gone)
    with pytest.raises(RuntimeError, match="closed by the peer"):
        meet(None, 0, 2, True)
    assert not Path(made[0]).exists()


def test_the_header_is_that_of_the_compiled_file(path):
    """ranks.c lays out what Python looks at."""
    SharedMemory(path, 1, 3)
    raw = Path(path).read_bytes()
    number, pid, gave_up = shared._RANK.unpack_from(raw, shared._HEADER)
    assert (number, pid, gave_up) == (0, os.getpid(), False)
    assert native.ranks_library().llama_ranks_bytes(3, 0) == 3 * shared._HEADER
