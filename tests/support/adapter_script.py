"""What the tests of adapters run on every rank: `adapter_script.py FOLDER`, which writes FOLDER/WORLD.RANK.json.

FOLDER holds m1, m2 and hf (one model in each layout), and the adapters `adapter` and `other`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from hf_models import IDS

from llama import Llama
from llama.errors import LlamaError

WORLD = int(os.environ.get("WORLD_SIZE", "1"))
RANK = int(os.environ.get("RANK", "0"))
BASES = ("m1", "m2", "hf")


def scores(place: Path, name: str, adapter: str | None, size: int | None = None) -> Any:
    """The log-probabilities of two texts, or the error."""
    folder = None if adapter is None else place / adapter
    try:
        with Llama.build(
            place / name, None, 64, 2, size, device="cpu", dtype="float32", adapter=folder
        ) as llama:
            return llama.generate(IDS, 0, temperature=0, logprobs=True, echo=True)[1]
    except LlamaError as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    place = Path(sys.argv[1])
    last = WORLD - 1
    found = {name: scores(place, name, "adapter") for name in BASES}
    if WORLD > 1:
        found["another"] = scores(place, "m2", "adapter" if last > RANK else "other")
        found["none"] = scores(place, "m2", "adapter" if last > RANK else None)
        found["another replica"] = scores(place, "m2", "adapter" if last > RANK else "other", WORLD // 2)
    found["afterwards"] = scores(place, "hf", None)
    (place / f"{WORLD}.{RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
