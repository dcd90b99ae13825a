"""Training against loops: of what the model itself writes, the tokens that repeat count against it.

Small models, decoded greedily, fall into loops, and more training on texts does not stop that, as no text has
them. So the model writes now and then, and its loss gains -log(1 - p) of every token that goes on with a loop
(unlikelihood training of sequences, Welleck et al. 2019, arXiv 1908.04319).
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from tiny_data import ROW, TokenFiles
from tiny_eval import REPEATED_TOKENS, TIMES
from torch import Tensor

from llama import Llama

# Of what is written at a time: texts, tokens that they go on from at most, and tokens of an answer.
TEXTS, BEFORE, WRITTEN = 128, 128, 96
# How often that is.
MINUTES = 1.5
# Older ones stay among those to train against: a few would be learned by heart, and others would loop again.
KEPT = 512
# Rows of one step.
ROWS = 8
MOST_EMPTY = 2


def loop_marks(ids: list[int], line_break: int, blank: frozenset[int]) -> list[int]:
    """1 for a token that ends a run of REPEATED_TOKENS, or lies in a line, that was there TIMES - 1 times before.

    Blank tokens do not count: a model that is told off for its indents makes up others. But lines of blanks, and
    more than two empty ones, always do: no code has them, and they would be the way around all other marks.
    """
    marks = [0] * len(ids)
    runs: Counter[tuple[int, ...]] = Counter()
    for end in range(REPEATED_TOKENS, len(ids) + 1):
        run = tuple(ids[end - REPEATED_TOKENS : end])
        runs[run] += 1
        marks[end - 1] = int(runs[run] >= TIMES and ids[end - 1] not in blank)
    lines: Counter[tuple[int, ...]] = Counter()
    start = empty = 0
    while line_break in ids[start:]:
        end = ids.index(line_break, start)
        line = tuple(ids[start:end])
        lines[line] += 1
        empty = 0 if line else empty + 1
        if not line:
            marks[end] = int(empty > MOST_EMPTY)
        elif blank.issuperset(line):
            marks[start : end + 1] = [1] * (len(line) + 1)
        elif lines[line] >= TIMES:
            marks[start:end] = [int(token not in blank) for token in line]
        start = end + 1
    return marks


def prompts(files: TokenFiles, count: int, rng: random.Random) -> list[list[int]]:
    """Beginnings to go on from: half are questions of the mix up to `[/INST]`, half plain code, cut anywhere."""
    tokenizer = files.tokenizer
    turn = tokenizer.sp("[INST] a [/INST]")[len(tokenizer.sp("[INST] a")) :]
    made: list[list[int]] = []
    while len(made) < count // 2:
        row = files.mix[rng.randrange(len(files.mix))].tolist()
        ends = [at + len(turn) for at in range(ROW) if row[at : at + len(turn)] == turn]
        starts = [max((at for at in range(end) if row[at] == tokenizer.bos), default=end) for end in ends]
        made += [row[s:e] for s, e in zip(starts, ends, strict=True) if 0 < e - s <= BEFORE][:1]
    while len(made) < count:
        start, length = rng.randrange(len(files.plain) - BEFORE), rng.randint(BEFORE // 4, BEFORE - 1)
        made.append([tokenizer.bos, *files.plain[start : start + length].tolist()])
    return made


def written(folder: Path, asked: list[list[int]]) -> list[list[int]]:
    """What the checkpoint in `folder` goes on with, greedily."""
    with Llama.build(
        folder, max_seq_len=BEFORE + WRITTEN, max_batch_size=64, device="cpu", dtype="float32"
    ) as llama:
        answers, _ = llama.generate(asked, max_gen_len=WRITTEN, temperature=0)
    return answers


class Loops:
    """Texts of the model's own that have loops, to train against; new ones now and then, as it changes."""

    def __init__(self, files: TokenFiles, seed: int) -> None:
        self._files, self._rng = files, random.Random(f"{seed}/loops")
        self._ids = self._marks = torch.empty(0, BEFORE + WRITTEN, dtype=torch.int64)

    def write(self, write_checkpoint: Callable[[Path], None]) -> float:
        """Have the model, which is written into a folder, write texts. Returns the share that has loops."""
        asked = prompts(self._files, TEXTS, self._rng)
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder))
            return self.keep(asked, written(Path(folder), asked))

    def keep(self, asked: list[list[int]], answers: list[list[int]]) -> float:
        """Keep the texts with loops, and the latest ones before them."""
        tokenizer = self._files.tokenizer
        ids = torch.zeros(len(asked), BEFORE + WRITTEN, dtype=torch.int64)
        marks = torch.zeros_like(ids)
        for row, (prompt, answer) in enumerate(zip(asked, answers, strict=True)):
            end = len(prompt) + len(answer)
            ids[row, :end] = torch.tensor(prompt + answer)
            marks[row, len(prompt) : end] = torch.tensor(
                loop_marks(answer, tokenizer.line_break, tokenizer.blank)
            )
        loops = marks.any(1)
        self._ids = torch.cat((self._ids, ids[loops]))[-KEPT:]
        self._marks = torch.cat((self._marks, marks[loops]))[-KEPT:]
        return loops.float().mean().item()

    def rows(self) -> tuple[Tensor, Tensor] | None:
        """Ids and marks [ROWS, BEFORE + WRITTEN] of some of them; None if there is none."""
        if not len(self._ids):
            return None
        chosen = torch.tensor([self._rng.randrange(len(self._ids)) for _ in range(ROWS)])
        return self._ids[chosen], self._marks[chosen]
