"""checklist.chk of a folder in Meta's layout, as `verify` reads it."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from mutations import damaged
from target import Target
from tiny_folders import meta

from llama.checkpoint.verify import verify

_LINES = (
    *(
        b"",
        b"\n" * 5000,
        b"d41d8cd98f00b204e9800998ecf8427e  /etc/passwd\n",
        b"0" * 32 + b"  ../x\n",
        b"\xff\xfe\n",
    ),
    *(
        b"0" * 32 + b"  " + b"x" * 100_000 + b"\n",
        b"0" * 32 + b"  \x1b[31m\0\r\n",
        b"0" * 32 + b" *./params.json\n",
    ),
    *(
        b"0" * 32 + b"  absent\n",
        b"<html>",
        b"g" * 32 + b"  params.json\n",
        b"0" * 32 + b"  .\n",
        b"0" * 31 + b"  x\n",
    ),
)


class _Checklist:
    name = "checklist"

    def __init__(self) -> None:
        self._sound: list[bytes] = []

    def prepare(self, folder: Path) -> None:
        meta(folder)
        self._sound = [
            f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.name}\n".encode()
            for path in sorted(folder.iterdir())
        ]

    def mutate(self, rng: random.Random, folder: Path) -> Path:
        lines = list(self._sound)
        for _ in range(rng.randrange(3)):
            at = rng.randrange(len(lines) + 1)
            lines[at : at + rng.randrange(2)] = [rng.choice((*_LINES, *self._sound))]
        raw = b"".join(lines)
        (folder / "checklist.chk").write_bytes(damaged(rng, raw) if rng.random() < 0.5 else raw)
        return folder

    def read(self, path: Path) -> str:
        first = next(iter(verify(path)))
        assert first.name == "checksums"
        assert first.status in ("pass", "fail")
        assert first.why
        return "accepted" if first.status == "pass" else "refused"


TARGET: Target = _Checklist()
