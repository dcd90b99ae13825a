"""What the tests of the service run on several ranks: `service_script.py FOLDER [SCENARIO...]`.

Under torchrun each process is a rank of the scenarios named. Without it this process forks the ranks of every scenario,
see forked_ranks.py. FOLDER holds the checkpoints s2 and nan.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forked_ranks import LIMIT, Scenario, launch_all

from llama import Llama
from llama.distributed import world
from llama.engine import Request
from llama.errors import EngineClosedError, NumericsError, ParallelismError, RankError
from llama.sampling import GREEDY, SamplingParams
from llama.serving import AsyncEngine, follower, serve, timeouts

SAMPLED = SamplingParams(temperature=1.1, top_p=0.95)
NAN_ID = 300
LONG = 100_000

# A rank that waits at the end of the program for another one that does not come should be seen to hang.
world._MEETING_SECONDS = 3600


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def build(folder: Path, name: str = "s2", limit: int = 2 * LONG, size: int | None = None) -> Llama:
    return Llama.build(folder / name, None, limit, 20, size, device="cpu", dtype="float32")


def requests() -> list[Request]:
    greedy = [Request((1, *range(5 + i, 9 + 3 * i)), 3 + i % 9, GREEDY) for i in range(16)]
    sampled = [Request((1, 40 + i, 7), 12, SAMPLED, seed=i, n=1 + i % 3, stop=("e",)) for i in range(8)]
    return [*greedy, *sampled, Request((1, 5), 0, GREEDY)]


async def complete(engine: AsyncEngine, request: Request) -> list[Any]:
    found = await engine.complete(request)
    return [
        [d.text, d.finish_reason and d.finish_reason.value, d.sequence and d.sequence.output] for d in found
    ]


async def results(engine: AsyncEngine) -> Any:
    """Streams beside callers that leave, and one that reads slowly; then some that wait for a long time."""

    async def leaver(i: int) -> None:
        stream = engine.stream(Request((1, 9 + i), 500, GREEDY))
        for _ in range(i):
            await anext(stream)
        await stream.aclose()

    async def slow() -> str:
        text = ""
        async for delta in engine.stream(Request((1, 8, 9), 60, GREEDY)):
            text += delta.text
            await asyncio.sleep(0.002)
        return text

    leaving = [leaver(i) for i in range(6)]
    found = await asyncio.gather(slow(), *(complete(engine, each) for each in requests()), *leaving)
    return list(found)


# ---- idle ranks --------------------------------------------------------------------------------------


def note_follower(folder: Path) -> None:
    """Write down which thread of this process follows."""
    follow = follower.follow

    def noting(*args: Any) -> None:
        (folder / f"{rank()}.thread").write_text(str(threading.get_native_id()))
        follow(*args)

    follower.follow = noting


def switches(pid: int, thread: int) -> int:
    """How often the kernel took a thread on or off a core: constant while the thread sleeps in one system call."""
    lines = Path(f"/proc/{pid}/task/{thread}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


async def idle(engine: AsyncEngine, folder: Path) -> list[list[int]]:
    """[how often each rank's thread ran in each of some spells without work]; between them it must wake."""
    (leader,) = (each for each in threading.enumerate() if each.name == "llama-engine")
    threads = [(os.getpid(), leader.native_id or 0)]
    for path in sorted(folder.glob("*.thread")):
        threads.append((int(path.with_suffix(".pid").read_text()), int(path.read_text())))
    found = []
    for _ in range(3):
        await complete(engine, Request((1, 5), 0, GREEDY))
        before = None
        # Until they have gone to sleep. A thread that never does would not get out of here.
        while before != (before := [switches(*each) for each in threads]):
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        found.append([switches(*each) - b for each, b in zip(threads, before, strict=True)])
    return found


# ---- scenarios ---------------------------------------------------------------------------------------


def whole(folder: Path) -> Any:
    """All that goes well, and logits that are not finite, on any number of ranks."""

    async def main(engine: AsyncEngine) -> Any:
        return {"results": await results(engine), "idle": await idle(engine, folder)}

    async def broken(engine: AsyncEngine) -> Any:
        kept = Request((1, 10, 11), 20, GREEDY)
        before = await complete(engine, kept)
        try:
            await engine.complete(Request((1, NAN_ID, 11), 6, GREEDY))
        except NumericsError as error:
            return {"error": str(error), "same": before == await complete(engine, kept)}

    note_follower(folder)
    with build(folder) as llama:
        found = asyncio.run(serve(llama.engine, main, unread=4))
        # A second service on the same ranks, and the calls of all ranks after it.
        found = found and found | {"again": asyncio.run(serve(llama.engine, results))}
        if rank():
            asyncio.run(serve(llama.engine, results))
        text = llama.text_completion(["def"], temperature=0, max_gen_len=8)[0]["generation"]
    with build(folder, "nan") as llama:
        numerics = asyncio.run(serve(llama.engine, broken))
    return {"service": found, "afterwards": text, "numerics": numerics}


def replicas(folder: Path) -> Any:
    with build(folder, size=1) as llama:
        try:
            asyncio.run(serve(llama.engine, results))
        except ParallelismError as error:
            return str(error)


async def twenty(engine: AsyncEngine, when_all_run: Callable[[], object]) -> None:
    """20 requests without end; each prints how it ended."""
    begun = [0] * 20

    async def one(i: int) -> None:
        async for delta in engine.stream(Request((1, 5 + i), LONG, SAMPLED, seed=i)):
            begun[i] = 1
            if sum(begun) == 20:
                when_all_run()
            if delta.finish_reason is not None:
                print(delta.finish_reason.value, flush=True)

    await asyncio.gather(*(one(i) for i in range(20)))


def serve_and_note(llama: Llama, main: Any, folder: Path) -> None:
    """Serve, and leave a file once the service is over, which no rank does that is killed."""
    try:
        asyncio.run(serve(llama.engine, main))
    finally:
        (folder / f"{rank()}.over").touch()


def endless(folder: Path) -> Any:
    with build(folder) as llama:
        serve_and_note(llama, lambda engine: twenty(engine, (folder / "ready").touch), folder)


def sigterm(folder: Path) -> Any:
    # Limits that a test of their own reaches: here they would only say that the machine is busy.
    timeouts.STEP_AFTER_SIGTERM = timeouts.LEADER_AFTER_SIGTERM = LIMIT
    endless(folder)


def sigterm_of_one(folder: Path) -> Any:
    timeouts.LEADER_AFTER_SIGTERM, timeouts.STEP_AFTER_HANG_UP = 0.5, LIMIT
    endless(folder)


async def outlasting(engine: AsyncEngine, when_all_run: Callable[[], object]) -> Any:
    """Streams that are read on only once no more are taken, and then to their end."""
    begun = [0] * 6

    async def one(i: int) -> Any:
        text, tokens, reason = "", [], None
        async for delta in engine.stream(Request((1, 5 + i), 40, SAMPLED, seed=i)):
            text, tokens, reason = text + delta.text, [*tokens, *delta.tokens], delta.finish_reason
            if not begun[i]:
                begun[i] = 1
                if sum(begun) == len(begun):
                    when_all_run()
                while engine.accepting:
                    await asyncio.sleep(0.01)
                # Longer than what rank 1 waits for rank 0 without a drain.
                await asyncio.sleep(0.5)
        return [text, tokens, reason and reason.value]

    found = await asyncio.gather(*(one(i) for i in range(len(begun))))
    try:
        engine.stream(Request((1, 5), 1, GREEDY))
    except EngineClosedError as error:
        return {"found": found, "refused": str(error)}


def drained(folder: Path) -> Any:
    timeouts.STEP_AFTER_SIGTERM, timeouts.LEADER_AFTER_SIGTERM = LIMIT, 0.25

    async def main(engine: AsyncEngine) -> Any:
        return await outlasting(engine, (folder / "ready").touch)

    with build(folder) as llama:
        return asyncio.run(serve(llama.engine, main, unread=4, drain_seconds=LIMIT))


def stuck(folder: Path) -> Any:
    """When all requests run, a step begins that never ends."""
    timeouts.STEP_AFTER_SIGTERM = 0.5
    with build(folder) as llama:
        all_run, step = threading.Event(), llama.engine.step

        def stepping() -> Any:
            if all_run.is_set():
                (folder / "ready").touch()
                threading.Event().wait()
            return step()

        llama.engine.step = stepping  # type: ignore[method-assign]
        asyncio.run(serve(llama.engine, lambda engine: twenty(engine, all_run.set)))


def unclosed(folder: Path) -> Any:
    """A program that never closes its AsyncEngine."""

    async def main() -> None:
        stream = AsyncEngine(build(folder).engine).stream(Request((1, 5), LONG, SAMPLED))
        await anext(stream)

    asyncio.run(main())


def sleeping(folder: Path) -> Any:
    """A service that has nothing to do, and would not have for days."""

    async def main(engine: AsyncEngine) -> None:
        await complete(engine, Request((1, 5), 3, GREEDY))
        (folder / "ready").touch()
        await asyncio.Event().wait()

    with build(folder) as llama:
        serve_and_note(llama, main, folder)


def failing(folder: Path, failing_rank: int) -> None:
    with build(folder) as llama:
        forward, steps = llama.engine.runner.run, []

        def forward_once_too_often(plan: Any) -> Any:
            steps.append(plan)
            if len(steps) == 20 and rank() == failing_rank:
                raise ValueError(f"the device of rank {failing_rank} fell off")
            return forward(plan)

        llama.engine.runner.run = forward_once_too_often  # type: ignore[method-assign]

        async def main(engine: AsyncEngine) -> None:
            try:
                await complete(engine, Request((1, 5), LONG, GREEDY))
            except Exception as error:
                print(type(error).__name__, error, flush=True)
                raise

        asyncio.run(serve(llama.engine, main))


def outlived(folder: Path) -> Any:
    """A rank whose step failed lives on until the other has heard of it."""
    try:
        failing(folder, 1)
    except RankError as error:
        (folder / f"heard.{rank()}").touch()
        while not (folder / f"heard.{1 - rank()}").exists():
            time.sleep(0.02)
        return str(error)


def cancelled(folder: Path) -> Any:
    """A host that gives its service some time, on every rank, and then uses the model itself."""

    async def main(engine: AsyncEngine) -> None:
        await complete(engine, Request((1, 5), LONG, GREEDY))

    found = []
    with build(folder) as llama:
        for _ in range(2):
            with contextlib.suppress(asyncio.TimeoutError):
                asyncio.run(asyncio.wait_for(serve(llama.engine, main), 0.5))
            found += llama.text_completion(["def"], temperature=0, max_gen_len=8)
    return [each["generation"] for each in found]


SCENARIOS = {
    "alone": Scenario(whole, 1),
    "together": Scenario(whole),
    "replicas": Scenario(replicas),
    "idle_without_0": Scenario(sleeping, signals={0: signal.SIGKILL}),
    "idle_without_1": Scenario(sleeping, signals={1: signal.SIGKILL}),
    "busy_without_0": Scenario(endless, signals={0: signal.SIGKILL}),
    "busy_without_1": Scenario(endless, signals={1: signal.SIGKILL}),
    "fails_on_0": Scenario(functools.partial(failing, failing_rank=0)),
    "fails_on_1": Scenario(functools.partial(failing, failing_rank=1)),
    "outlived": Scenario(outlived),
    "cancelled": Scenario(cancelled),
    "sigterm": Scenario(sigterm, signals={0: signal.SIGTERM, 1: signal.SIGTERM}),
    "drained": Scenario(drained, signals={0: signal.SIGTERM, 1: signal.SIGTERM}),
    "drained_alone": Scenario(drained, 1, {0: signal.SIGTERM}),
    "sigterm_of_one": Scenario(sigterm_of_one, signals={1: signal.SIGTERM}),
    "sigterm_alone": Scenario(sigterm, 1, {0: signal.SIGTERM}),
    "stuck": Scenario(stuck, 1, {0: signal.SIGTERM}),
    "unclosed": Scenario(unclosed, 1),
}


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        launch_all(folder, SCENARIOS)
        return
    (folder / f"{rank()}.pid").write_text(str(os.getpid()))
    for name in names:
        globals()[name](folder)


if __name__ == "__main__":
    main()
