"""What test_cut_off.py runs on every node: `cut_script.py FOLDER completion|busy|idle SILENCE`.

FOLDER holds the checkpoint s2. Each scenario goes on until it is stopped from outside; rank N writes
FOLDER/cut/SCENARIO.N.ready once it has begun, and SCENARIO.N.ended with the error that ended it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path

from rank_script import NEVER, RANK, build, short_texts

from llama import Llama
from llama.distributed import silence, world
from llama.engine import Request
from llama.sampling import GREEDY
from llama.serving import AsyncEngine

LONG = 100_000
# A rank that waits for one that is cut off, at the end of the program, should be seen to hang.
world._MEETING_SECONDS = world._ERROR_SECONDS = NEVER


def completion(folder: Path, ready: Callable[[object], None]) -> None:
    """Calls of the library. First those whose texts the test knows."""
    with build(folder, None) as llama:
        texts = short_texts(llama)
    with long(folder) as llama:
        for number, _ in enumerate(llama.stream(["x"], temperature=1, max_gen_len=LONG, seed=0)):
            if number == 0:
                ready(texts)


def busy(folder: Path, ready: Callable[[object], None]) -> None:
    """A service in the middle of a request."""

    async def main(engine: AsyncEngine) -> None:
        async for _ in engine.stream(Request((1, 5, 9), LONG, GREEDY)):
            ready(None)

    serve(folder, main, ready)


def idle(folder: Path, ready: Callable[[object], None]) -> None:
    """A service without requests."""

    async def main(engine: AsyncEngine) -> None:
        await engine.complete(Request((1, 5, 9), 5, GREEDY))
        ready(None)
        await asyncio.sleep(NEVER)

    serve(folder, main, ready)


def serve(folder: Path, main: Callable[..., object], ready: Callable[[object], None]) -> None:
    with long(folder) as llama:
        if RANK:
            ready(None)  # rank 0 hears of it by an answer to its first request
        asyncio.run(llama.serve(main))  # type: ignore[arg-type]


def long(folder: Path) -> Llama:
    return Llama.build(folder / "s2", None, 2 * LONG, 1, device="cpu", dtype="float32")


def run(folder: Path, scenario: str, seconds: str) -> None:
    silence.SILENCE_SECONDS = int(seconds)
    own = folder / "cut" / f"{scenario}.{RANK}"
    own.parent.mkdir(exist_ok=True)

    def ready(found: object) -> None:
        part = Path(f"{own}.part")  # each rank its own
        part.write_text(json.dumps(found))
        part.replace(f"{own}.ready")

    try:
        globals()[scenario](folder, ready)
    except BaseException as error:
        Path(f"{own}.ended").write_text(f"{type(error).__name__}: {error}")
        raise


if __name__ == "__main__":
    run(Path(sys.argv[1]), *sys.argv[2:])
