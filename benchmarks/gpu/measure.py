"""Runs one part in this process; driver.py starts it.

    python -m gpu.measure ceilings --samples FILE [--guard LIBRARY]

Each figure is a line of JSON in FILE as soon as it is there, so that a part which is stopped keeps what it has.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .figures import Figure
from .workplace import Workplace

__all__ = ["main"]

# The part's name -> the module of works/ whose `run` measures it.
WORKS = {
    "tests": "laws",
    "ceilings": "ceilings",
    "decode-7b": "decode",
    "prefill-7b": "prefill",
    "transformers": "beside",
    "34b": "large",
    "profile": "one_step",
}


@contextlib.contextmanager
def _device(guard: Path | None) -> Iterator[torch.device]:
    """The first GPU; or a pretended one, whose guard is that library."""
    with contextlib.ExitStack() as stack:
        if guard is not None:
            from pretended_gpu import load_guard, pretended

            load_guard(guard)
            stack.enter_context(pretended())
        device = torch.device("cuda", 0)
        stack.enter_context(torch.cuda.device(device))
        yield device


def main(words: list[str] | None = None) -> None:
    """Measure one part."""
    parser = argparse.ArgumentParser("gpu.measure")
    parser.add_argument("part", choices=WORKS)
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--guard", type=Path)
    options = parser.parse_args(words)
    with options.samples.open("a", encoding="utf-8") as file:

        def write(data: dict[str, Any]) -> None:
            print(json.dumps(data), file=file, flush=True)

        def emit(figure: Figure) -> None:
            write(figure.as_json())
            print(
                f"{figure.name}: median {figure.median:.4g} {figure.unit} of {len(figure.samples)}",
                flush=True,
            )

        work = importlib.import_module(f".works.{WORKS[options.part]}", __package__)
        tiny = options.guard is not None
        if options.part == "tests":  # pytest has its own device
            work.run(emit, tiny)
            return
        with _device(options.guard) as device:
            work.run(Workplace(device, tiny, emit, lambda text: write({"lacking": text})))


if __name__ == "__main__":
    main()
