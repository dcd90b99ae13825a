"""What test_service.py runs on several ranks: `service_script.py FOLDER SCENARIO...`.

Under torchrun each process is a rank. Without it this process forks the ranks of each scenario, kills or
signals what the scenario says, and writes how they ended to FOLDER/<scenario>.json: so nobody but the ranks
themselves notices that one died, and torch is imported once. FOLDER holds the checkpoints s2 and nan.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from llama import Llama
from llama.distributed import world
from llama.engine import Request
from llama.errors import NumericsError, ParallelismError, RankError
from llama.sampling import GREEDY, SamplingParams
from llama.serving import AsyncEngine, serve
from llama.serving import lifecycle as serving

SAMPLED = SamplingParams(temperature=1.1, top_p=0.95)
NAN_ID = 300
LONG = 100_000
AT_ONCE = 4
# Far above what a scenario takes: a rank that hangs is killed, and its exit code says so.
LIMIT = 150.0
# scenario: (ranks, rank and signal that it gets once all ranks are ready)
SCENARIOS: dict[str, tuple[int, dict[int, signal.Signals]]] = {
    "alone": (1, {}),
    "together": (2, {}),
    "replicas": (2, {}),
    "idle_without_0": (2, {0: signal.SIGKILL}),
    "idle_without_1": (2, {1: signal.SIGKILL}),
    "busy_without_0": (2, {0: signal.SIGKILL}),
    "busy_without_1": (2, {1: signal.SIGKILL}),
    "fails_on_0": (2, {}),
    "fails_on_1": (2, {}),
    "outlived": (2, {}),
    "cancelled": (2, {}),
    "sigterm": (2, {0: signal.SIGTERM, 1: signal.SIGTERM}),
    "sigterm_of_one": (2, {1: signal.SIGTERM}),
}


# Who waits for a rank that does not come to the end of the program hangs, as far as anybody here looks.
world._MEETING_SECONDS = 3600


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def build(folder: Path, name: str = "s2", limit: int = 2 * LONG, size: int | None = None) -> Llama:
    return Llama.build(folder / name, None, limit, 20, size, device="cpu", dtype="float32")


def requests() -> list[Request]:
    greedy = [Request((1, *range(5 + i, 9 + 3 * i)), 3 + i % 9, GREEDY) for i in range(16)]
    sampled = [Request((1, 40 + i, 7), 12, SAMPLED, seed=i, n=1 + i % 3, stop=("e",)) for i in range(8)]
    return [*greedy, *sampled, Request((1, 5), 0, GREEDY)]


async def complete(front: AsyncEngine, request: Request) -> list[Any]:
    found = await front.complete(request)
    return [
        [d.text, d.finish_reason and d.finish_reason.value, d.sequence and d.sequence.output] for d in found
    ]


async def results(front: AsyncEngine) -> Any:
    """Streams beside callers that leave, and one that reads slowly; then some that wait for a long time."""

    async def leaver(i: int) -> None:
        stream = front.stream(Request((1, 9 + i), 500, GREEDY))
        for _ in range(i):
            await anext(stream)
        await stream.aclose()

    async def slow() -> str:
        text = ""
        async for delta in front.stream(Request((1, 8, 9), 60, GREEDY)):
            text += delta.text
            await asyncio.sleep(0.002)
        return text

    leaving = [leaver(i) for i in range(6)]
    found = await asyncio.gather(slow(), *(complete(front, each) for each in requests()), *leaving)
    return list(found)


async def idle(front: AsyncEngine, folder: Path) -> Any:
    """CPU seconds of each rank in two seconds without work; how long a wake and an answer without a model take, ms."""
    processes = [psutil.Process(int(path.read_text())) for path in sorted(folder.glob("*.pid"))]
    before = [sum(process.cpu_times()[:2]) for process in processes]
    await asyncio.sleep(2)
    used = [sum(process.cpu_times()[:2]) - b for process, b in zip(processes, before, strict=True)]
    wakes = []
    for _ in range(20):
        await asyncio.sleep(0.01)
        start = time.perf_counter()
        await front.complete(Request((1, 5), 0, GREEDY))
        wakes.append(1e3 * (time.perf_counter() - start))
    return {"cpu": used, "wakes": wakes}


def whole(folder: Path) -> Any:
    """All that goes well, and logits that are not finite, on any number of ranks."""

    async def main(front: AsyncEngine) -> Any:
        return {"results": await results(front), "idle": await idle(front, folder)}

    async def broken(front: AsyncEngine) -> Any:
        kept = Request((1, 10, 11), 20, GREEDY)
        before = await complete(front, kept)
        try:
            await front.complete(Request((1, NAN_ID, 11), 6, GREEDY))
        except NumericsError as error:
            return {"error": str(error), "same": before == await complete(front, kept)}

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


alone = together = whole


def replicas(folder: Path) -> Any:
    with build(folder, size=1) as llama:
        try:
            asyncio.run(serve(llama.engine, results))
        except ParallelismError as error:
            return str(error)


def serve_and_note(llama: Llama, main: Any, folder: Path) -> None:
    """The service, and when it was over: the program's own end takes a second, or many where others use the cores."""
    try:
        asyncio.run(serve(llama.engine, main))
    finally:
        (folder / f"{rank()}.over").write_text(str(time.monotonic()))


def endless(folder: Path) -> Any:
    """20 requests without end; each says how it ended."""
    begun = [0] * 20

    async def one(front: AsyncEngine, i: int) -> None:
        async for delta in front.stream(Request((1, 5 + i), LONG, SAMPLED, seed=i)):
            begun[i] = 1
            if sum(begun) == 20:
                (folder / "ready").touch()
            if delta.finish_reason is not None:
                print(delta.finish_reason.value, flush=True)

    async def main(front: AsyncEngine) -> None:
        await asyncio.gather(*(one(front, i) for i in range(20)))

    with build(folder) as llama:
        serve_and_note(llama, main, folder)


busy_without_0 = busy_without_1 = endless


def sigterm(folder: Path) -> Any:
    # A rank that gives up waiting has a test of its own; here it would only say that others use the cores.
    serving._LAST_SECONDS = serving._FOLLOWER_SECONDS = LIMIT
    endless(folder)


def sigterm_of_one(folder: Path) -> Any:
    serving._FOLLOWER_SECONDS, serving._GRACE_SECONDS = 0.5, LIMIT
    endless(folder)


def sleeping(folder: Path) -> Any:
    """A service that has nothing to do, and would not have for days."""

    async def main(front: AsyncEngine) -> None:
        await complete(front, Request((1, 5), 3, GREEDY))
        (folder / "ready").touch()
        await asyncio.Event().wait()

    with build(folder) as llama:
        serve_and_note(llama, main, folder)


idle_without_0 = idle_without_1 = sleeping


def failing(folder: Path, failing_rank: int) -> None:
    with build(folder) as llama:
        forward, steps = llama.engine.runner.run, []

        def forward_once_too_often(plan: Any) -> Any:
            steps.append(plan)
            if len(steps) == 20 and rank() == failing_rank:
                raise ValueError(f"the device of rank {failing_rank} fell off")
            return forward(plan)

        llama.engine.runner.run = forward_once_too_often  # type: ignore[method-assign]

        async def main(front: AsyncEngine) -> None:
            try:
                await complete(front, Request((1, 5), LONG, GREEDY))
            except Exception as error:
                print(type(error).__name__, error, flush=True)
                raise

        asyncio.run(serve(llama.engine, main))


def fails_on_0(folder: Path) -> Any:
    failing(folder, 0)


def fails_on_1(folder: Path) -> Any:
    failing(folder, 1)


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

    async def main(front: AsyncEngine) -> None:
        await complete(front, Request((1, 5), LONG, GREEDY))

    found = []
    with build(folder) as llama:
        for _ in range(2):
            with contextlib.suppress(asyncio.TimeoutError):
                asyncio.run(asyncio.wait_for(serve(llama.engine, main), 0.5))
            found += llama.text_completion(["def"], temperature=0, max_gen_len=8)
    return [each["generation"] for each in found]


# ---- the launcher ------------------------------------------------------------------------------------


def become(each: int, ranks: int, port: int, folder: Path) -> None:
    """In a forked child: a rank whose output goes to files."""
    if ranks > 1:
        numbers = {"RANK": each, "LOCAL_RANK": each, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        os.environ |= {name: str(value) for name, value in numbers.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(folder / f"{each}.{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    (folder / f"{each}.pid").write_text(str(os.getpid()))


class Launched:
    """A scenario under way on forked ranks."""

    def __init__(self, folder: Path, name: str, pids: list[int], reserved: socket.socket) -> None:
        self.folder, self.name, self.pids, self.reserved = folder, name, pids, reserved
        self.signals = SCENARIOS[name][1]
        self.codes: list[int | None] = [None] * len(pids)
        self.told = time.monotonic()

    def look(self) -> bool:
        """Signal some ranks once all are ready; note which ended -> whether some are left."""
        if self.signals and (self.folder / self.name / "ready").exists():
            for each, number in self.signals.items():
                os.kill(self.pids[each], number)
            self.signals, self.told = {}, time.monotonic()
        for i, pid in enumerate(self.pids):
            if self.codes[i] is None:
                done, status = os.waitpid(pid, os.WNOHANG)
                self.codes[i] = os.waitstatus_to_exitcode(status) if done else None
        if time.monotonic() - self.told > LIMIT:
            for pid, code in zip(self.pids, self.codes, strict=True):
                if code is None:
                    os.kill(pid, signal.SIGKILL)
        if None not in self.codes:
            self.reserved.close()
            over = [float(path.read_text()) for path in (self.folder / self.name).glob("*.over")]
            found = {"codes": self.codes, "seconds": [each - self.told for each in over]}
            (self.folder / f"{self.name}.json").write_text(json.dumps(found))
        return None in self.codes


def launch(folder: Path, name: str) -> Launched | None:
    """Fork the ranks of a scenario; None in a child that has done its part."""
    count, _ = SCENARIOS[name]
    own = folder / name
    own.mkdir()
    for checkpoint in ("s2", "nan"):
        (own / checkpoint).symlink_to(folder / checkpoint)
    # Bound until the scenario is over, and never listening: rank 0 can, and the system gives the port to nobody else.
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    port = reserved.getsockname()[1]
    pids: list[int] = []
    for each in range(count):
        pids.append(os.fork())
        if not pids[-1]:
            become(each, count, port, own)
            found = globals()[name](own)
            (own / f"{each}.json").write_text(json.dumps(found))
            return None
    return Launched(folder, name, pids, reserved)


def launch_all(folder: Path, names: list[str]) -> None:
    """Several scenarios side by side."""
    under_way: list[Launched] = []
    while names or under_way:
        while names and len(under_way) < AT_ONCE:
            launched = launch(folder, names.pop(0))
            if launched is None:
                return
            under_way.append(launched)
        under_way = [each for each in under_way if each.look()]
        time.sleep(0.01)


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        launch_all(folder, names)
        return
    (folder / f"{rank()}.pid").write_text(str(os.getpid()))
    for name in names:
        globals()[name](folder)


if __name__ == "__main__":
    main()
