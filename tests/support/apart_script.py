"""What test_apart.py runs on every rank, `apart_script.py FOLDER`: ranks that diverge, or fail alone.

Each scenario catches what its calls raise, on every rank, and goes on with the same model. Each rank writes
what it saw to FOLDER/apart-<world>/<rank>.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed import distributed_c10d

from llama import Llama
from llama.distributed import world
from llama.errors import NumericsError, RankError

WORLD, RANK = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
LAST = WORLD - 1
PROMPTS = ["def return self value", "for i in range(10):", "class", "import list index"]
# A rank that waits for a failed one at the end of a scenario hangs, as far as the test can see.
world._MEETING_SECONDS = world._ERROR_SECONDS = 3600.0


def no_pickle(*args: Any, **more: Any) -> Any:
    raise AssertionError("something went from rank to rank as a pickle")


distributed_c10d._pickler = distributed_c10d._unpickler = no_pickle


class DeviceError(torch.OutOfMemoryError):
    """As torch raises it, with a text."""


def text(llama: Llama, prompts: list[str] = PROMPTS, new: int = 6) -> list[str]:
    found = llama.text_completion(prompts, temperature=0, max_gen_len=new)
    return [each["generation"] for each in found]


def seen(action: Callable[[], Any]) -> list[Any]:
    """["result", what a call returned], or the kind and text of what it raised; then the seconds it took."""
    began = time.monotonic()
    try:
        found = ["result", action()]
    except BaseException as error:
        found = [type(error).__name__, str(error)]
    return [*found, time.monotonic() - began]


@contextlib.contextmanager
def model(folder: Path, size: int) -> Iterator[Llama]:
    """Closed as after an error, so that no rank waits for the others."""
    llama = Llama.build(folder / "s2", None, 96, 8, size, device="cpu", dtype="float32")
    yield llama
    llama.close(RankError("the scenario is over"))


def fails_once(llama: Llama, error: BaseException, rank: int = LAST) -> None:
    """The second step from now raises this, on one rank."""
    forward, left = llama.engine.runner.run, [2 if rank == RANK else 10**9]

    def failing(plan: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise error
        return forward(plan)

    llama.engine.runner.run = failing  # type: ignore[method-assign]


# ---- one model on all ranks ------------------------------------------------------------------------------


def order(llama: Llama) -> Any:
    """Prompts as a set may give them."""
    prompts = PROMPTS if RANK < LAST else PROMPTS[::-1]
    return seen(lambda: text(llama, prompts))


def limit(llama: Llama) -> Any:
    return seen(lambda: text(llama, new=6 if RANK < LAST else 7))


def failure(llama: Llama) -> Any:
    fails_once(llama, MemoryError("no room for this step"))
    return seen(lambda: text(llama))


def interrupt(llama: Llama) -> Any:
    fails_once(llama, KeyboardInterrupt(), rank=0)
    return seen(lambda: text(llama))


def between(llama: Llama) -> Any:
    """Ctrl-C when a step is over and the next one has not begun."""
    read = llama.engine.read

    def struck(feed: Any) -> Any:
        llama.engine.read = read  # type: ignore[method-assign]
        raise KeyboardInterrupt

    if RANK == 0:
        llama.engine.read = struck  # type: ignore[method-assign]
    return seen(lambda: text(llama))


def direct(llama: Llama) -> Any:
    """A host program that steps the engine itself."""

    def steps() -> None:
        for request in llama.requests(PROMPTS, temperature=0, max_gen_len=6):
            llama.engine.add(request)
        while llama.engine.unfinished:
            llama.engine.step()

    fails_once(llama, MemoryError("no room for this step"))
    return seen(steps)


def begins(llama: Llama) -> Any:
    """A stream is open on all; the last rank begins another call, the others read on."""
    stream = llama.stream([PROMPTS[0]], temperature=0, max_gen_len=40)
    next(stream)
    return seen(lambda: text(llama) if RANK == LAST else [delta.text for delta in stream])


def fewer(llama: Llama) -> Any:
    """One rank makes no call at all, and gives the model back: the others are in a step of theirs."""
    if RANK < LAST:
        return seen(lambda: text(llama))
    # Over sockets the others only hear of it once this rank has waited for them in vain.
    patience = world._MEETING_SECONDS
    world._MEETING_SECONDS = patience if llama.model.parallel.shared else 0.3
    llama.close()
    world._MEETING_SECONDS = patience
    return None


APART = (order, limit, failure, interrupt, between, direct, begins, fewer)


def whole(folder: Path) -> dict[str, Any]:
    """Each scenario on a model of its own, followed by a call that all ranks make."""
    found = {}
    for scenario in APART:
        with model(folder, WORLD) as llama:
            found[scenario.__name__] = [scenario(llama), seen(lambda llama=llama: text(llama))]
    return found


def over_sockets(folder: Path) -> dict[str, Any]:
    """The same without shared memory, as on several machines."""
    share, world.share_memory = world.share_memory, lambda *args: None
    try:
        return whole(folder)
    finally:
        world.share_memory = share


# ---- replicas ------------------------------------------------------------------------------------


def replicas(folder: Path) -> dict[str, Any]:
    """Two replicas. The last rank's replica fails in ways after which the other can go on."""
    found: dict[str, Any] = {}
    errors = [MemoryError("none left"), DeviceError("GPU full"), KeyboardInterrupt(), NumericsError("a NaN")]
    with model(folder, WORLD // 2) as llama:
        plain = llama.engine.runner.run
        found["before"] = seen(lambda: text(llama))
        for error in errors:
            for name, call in (("run", text), ("stream", streamed)):
                fails_once(llama, error)
                found[f"{name} {type(error).__name__}"] = seen(lambda call=call: call(llama))
                llama.engine.runner.run = plain  # type: ignore[method-assign]
                found[f"{name} after {type(error).__name__}"] = seen(lambda: text(llama))
    for scenario in (early, other_prompts, gather_interrupted):
        with model(folder, WORLD // 2) as llama:
            found[scenario.__name__] = [scenario(llama), seen(lambda llama=llama: text(llama))]
    return found


def streamed(llama: Llama) -> list[str]:
    texts = [""] * len(PROMPTS)
    for delta in llama.stream(PROMPTS, temperature=0, max_gen_len=6):
        texts[delta.index] += delta.text
    return texts


def early(llama: Llama) -> Any:
    """One replica reads a stream to its end, the other does not."""

    def read() -> int:
        with contextlib.closing(llama.stream(PROMPTS, temperature=0, max_gen_len=30)) as stream:
            if llama.model.parallel.replica:
                return len([next(stream)])
            return len(list(stream))

    found = seen(read)
    if not llama.model.parallel.replica:
        return found
    assert found[:2] == ["result", 1]
    return seen(lambda: text(llama))


def other_prompts(llama: Llama) -> Any:
    return seen(lambda: text(llama, PROMPTS[::-1] if llama.model.parallel.replica else PROMPTS))


def gather_interrupted(llama: Llama) -> Any:
    """Ctrl-C on the first replica while it waits for the last one, which is late."""
    if llama.model.parallel.replica:
        time.sleep(0.8)
        return seen(lambda: text(llama))

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.4)
    found = seen(lambda: text(llama))
    signal.signal(signal.SIGALRM, before)
    return found


def again(folder: Path) -> Any:
    """After all of that, a model that is built again works."""
    with model(folder, WORLD) as llama:
        return seen(lambda: text(llama))


def main() -> None:
    folder = Path(sys.argv[1])
    found = {each.__name__: each(folder) for each in (whole, over_sockets, replicas, again)}
    path = folder / f"apart-{WORLD}" / f"{RANK}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
