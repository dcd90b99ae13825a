"""Laws of the address space: where a process may reserve little, the cache is as large as that, or an error if bytes
were asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import HANGS, ROOT

from llama.distributed.parallel import Parallel
from llama.errors import OutOfMemoryError
from llama.sizing.address_space import reservable

CPU = torch.device("cpu")
BESIDE = 512 << 20


class Reserving:
    """A system that lets so many bytes be reserved, of tokens of one MiB."""

    def __init__(self, room: int) -> None:
        self.room, self.most = room, 0

    def __call__(self, tokens: int) -> object:
        if tokens << 20 > self.room:
            raise OutOfMemoryError("no room")
        self.most = max(self.most, tokens)
        return object()


@pytest.mark.parametrize("room", [1 << 30, 3 << 30, 20 << 30, 50 << 30])
def test_as_much_as_can_be_reserved_with_room_beside_it(room: int) -> None:
    found = reservable(40_000, 64, 1 << 20, Reserving(room), Parallel(), CPU)
    fits = max(64, min(room * 4 // 5, room - BESIDE) >> 20)
    assert min(fits, 40_000) - 40_000 // 64 <= found <= min(fits, 40_000)


def test_what_can_be_reserved_is_not_lowered() -> None:
    assert reservable(1000, 64, 1 << 20, Reserving(1600 << 20), Parallel(), CPU) == 1000
    assert reservable(1000, 64, 1 << 20, Reserving(1499 << 20), Parallel(), CPU) < 1000


def test_where_nothing_can_be_reserved_one_sequence_is_left_to_try() -> None:
    assert reservable(1000, 64, 1 << 20, Reserving(0), Parallel(), CPU) == 64


def test_other_devices_are_not_asked() -> None:
    assert reservable(1000, 64, 1 << 20, Reserving(0), Parallel(), torch.device("meta")) == 1000


def test_all_ranks_get_what_each_can_reserve() -> None:
    """Another rank can reserve less; and this one holds what it reserved while the other tries."""
    held: list[object] = []

    class Other(Parallel):
        def smallest(self, value: int | None, device: torch.device) -> int | None:
            assert value is not None
            fits = bool(held) and len(held) == 1 and held[0] <= 600 + 512  # type: ignore[operator]
            return min(value, int(fits))

    class Piece:
        def __init__(self, tokens: int) -> None:
            held.append(tokens)

        def __del__(self) -> None:
            held.pop()

    found = reservable(1000, 64, 1 << 20, Piece, Other(), CPU)
    assert 600 - 1000 // 64 <= found <= 600
    assert not held


# Prints the cache's tokens by default and for a share, an answer, and what bytes that are not to be had raise.
LITTLE = """
import json, resource, sys
from pathlib import Path
from llama import Llama
from llama.errors import OutOfMemoryError
sizes = dict(max_seq_len=512, max_batch_size=1 << 14, device="cpu", dtype="float32")
taken = next(int(l.split()[1]) for l in Path("/proc/self/status").open() if l.startswith("VmSize")) << 10
resource.setrlimit(resource.RLIMIT_AS, (taken + (800 << 20),) * 2)
llama = Llama.build(sys.argv[1], **sizes)
answer = llama.text_completion(["def f"], max_gen_len=8, temperature=0)[0]["generation"]
found = [llama.engine.cache_tokens, llama.engine.memory.pool.nbytes, answer]
del llama
found.append(Llama.build(sys.argv[1], cache_memory="90%", **sizes).engine.cache_tokens)
try:
    Llama.build(sys.argv[1], cache_memory="1GiB", **sizes)
except OutOfMemoryError as error:
    found.append(str(error))
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
def test_a_process_with_little_address_space_has_a_smaller_cache(tiny_checkpoint: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LITTLE, str(tiny_checkpoint)],
        env=env,
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tokens, nbytes, answer, share, error = json.loads(done.stdout)
    assert 512 < tokens < 512 << 14
    assert nbytes < 300 << 20
    assert answer
    assert 512 < share < 512 << 14
    assert "1.00 GiB of address space" in error
    assert done.stderr.count("The cache is lowered from ") == 2
