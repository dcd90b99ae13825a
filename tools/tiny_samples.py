"""Rows of the second training phase: infilling, `[INST]` turns and plain code, packed.

The samples have the family's token formats. Made in order, the rows of a seed are always the same. Beside its
ids a row has a mark for each: 1 for those of a middle and its EOT, which count more in the loss, else 0.
"""

from __future__ import annotations

import math
import random
import re
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate

from tiny_corpus import LIBRARY, Document, Function
from tiny_tokenizer import TinyTokenizer

# Of all tokens in these rows. What is left is plain code.
SHARES = {"hole": 0.60, "instruction": 0.10, "function": 0.05}
SPM_SHARE = 0.6
# Of the chat format. The runtime refuses messages that hold one.
TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
SYSTEM_SHARE = 0.33
SYSTEMS = (
    "Answer with one Python function.",
    "Answer in Python.",
    "You are a helpful assistant.",
    "Write short and clear code.",
    "Be brief.",
)
LIBRARY_WEIGHT = 3
SHORTEST_CHUNK, LONGEST_CHUNK = 150, 3200  # characters
BOUNDARY = re.compile(r"\n(?=[ \t]{0,4}(?:def |class |async def |@))")
INDENT = re.compile(r"[ \t]*")

Row = tuple[list[int], list[int]]  # ids and marks


def line_end(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end < 0 else end


def middle_span(text: str, rng: random.Random) -> tuple[int, int]:
    """Start and end of a hole: half are a line, a fifth the end of one, a fifth 2-6 lines, the rest characters."""
    kind = rng.random()
    starts = [match.start() for match in re.finditer(r"^[ \t]*\S", text, re.MULTILINE)]
    if kind < 0.1 or not starts:
        first = rng.randint(0, len(text))
        return first, min(len(text), first + int(math.exp(rng.uniform(0, 6))))
    chosen = rng.randrange(len(starts))
    start, end = starts[chosen], line_end(text, starts[chosen])
    code = INDENT.match(text, start).end()  # type: ignore[union-attr]  # it matches nothing, too
    if kind < 0.6:
        return rng.choice((start, start, code)), end
    if kind < 0.8:
        return rng.randint(code, end), end
    last = min(len(starts) - 1, chosen + rng.randint(1, 5))
    return rng.choice((start, code)), line_end(text, starts[last])


def hole(text: str, tokenizer: TinyTokenizer, rng: random.Random) -> Row:
    """One infilling sample."""
    start, end = middle_span(text, rng)
    suffix_first = rng.random() < SPM_SHARE
    prompt = (tokenizer.spm if suffix_first else tokenizer.psm)(text[:start], text[end:])
    # Suffix first, prefix and middle are one text: without a prefix it is the middle that begins it.
    begins_text = suffix_first and start == 0
    middle = [*(tokenizer.sp if begins_text else tokenizer.sp0)(text[start:end]), tokenizer.eot]
    return prompt + middle, [0] * len(prompt) + [1] * len(middle)


def instruction(function: Function, tokenizer: TinyTokenizer, rng: random.Random) -> list[int]:
    """One `[INST]` turn: mostly from a description to a function, sometimes the other way."""
    kind = rng.random()
    if kind < 0.25:
        user, answer = f"Write a Python function `{function.signature}`. {function.summary}", function.source
    elif kind < 0.5:
        user, answer = f"Write this Python function: {function.summary}", function.source
    elif kind < 0.8:
        user, answer = function.summary, function.source
    else:
        user, answer = f"Explain this Python function.\n\n{function.bare}", function.docstring
    user = user.strip()
    if rng.random() < SYSTEM_SHARE:
        user = f"<<SYS>>\n{rng.choice(SYSTEMS)}\n<</SYS>>\n\n{user}"
    return tokenizer.document(tokenizer.sp(f"[INST] {user} [/INST] {answer.strip()} "))


class RowMaker:
    """Makes packed rows of `length` ids from documents and functions."""

    def __init__(
        self,
        documents: list[Document],
        functions: list[Function],
        tokenizer: TinyTokenizer,
        length: int,
        seed: int,
    ) -> None:
        self.documents, self.functions, self.tokenizer = documents, functions, tokenizer
        self.untagged = [f for f in functions if not any(tag in f.source for tag in TAGS)]
        self.length, self.seed = length, seed
        weights = [len(d.text) * (LIBRARY_WEIGHT if d.package == LIBRARY else 1) for d in documents]
        self._ends = list(accumulate(weights))
        self._made = dict.fromkeys((*SHARES, "plain"), 0)

    def row(self, number: int) -> Row:
        """Whole samples while they fit, then plain code, which may be cut anywhere."""
        rng = random.Random(f"{self.seed}/{number}")
        ids: list[int] = []
        marks: list[int] = []
        while len(ids) < self.length:
            kind, (more, more_marks) = self._sample(rng)
            if len(ids) + len(more) > self.length:
                kind, more = "plain", self._window(rng, self.length - len(ids))
                more_marks = [0] * len(more)
            self._made[kind] += len(more)
            ids += more
            marks += more_marks
        return ids, marks

    def _sample(self, rng: random.Random) -> tuple[str, Row]:
        """A sample of the kind that is furthest behind its share."""
        total = sum(self._made.values())
        kind = max(SHARES, key=lambda kind: SHARES[kind] * total - self._made[kind])
        if SHARES[kind] * total < self._made[kind]:
            kind = "plain"
        if kind == "hole":
            return kind, self._fitting(lambda: hole(self._chunk(rng), self.tokenizer, rng))
        if kind == "plain":
            ids = [self.tokenizer.bos, *self.tokenizer.sp(self._chunk(rng))][: self.length]
            return kind, (ids, [0] * len(ids))
        return kind, self._fitting(lambda: self._function(rng, kind))

    def _function(self, rng: random.Random, kind: str) -> Row:
        if kind == "instruction":
            ids = instruction(rng.choice(self.untagged), self.tokenizer, rng)
        else:  # a whole document, so that the model learns where a body ends
            source = rng.choice(self.functions).source
            ids = self.tokenizer.document(self.tokenizer.sp(source + "\n"))
        return ids, [0] * len(ids)

    def _fitting(self, make: Callable[[], Row]) -> Row:
        while len((made := make())[0]) > self.length:
            pass
        return made

    def _place(self, rng: random.Random) -> tuple[str, int]:
        """A document, as likely as its characters are many, and the start of a line in it."""
        text = self.documents[bisect_right(self._ends, rng.randrange(self._ends[-1]))].text
        return text, text.rfind("\n", 0, rng.randrange(len(text))) + 1

    def _chunk(self, rng: random.Random) -> str:
        """Whole lines; half of the chunks start and end near a function or class. All orders of size are alike."""
        text, start = self._place(rng)
        size = int(math.exp(rng.uniform(math.log(SHORTEST_CHUNK), math.log(LONGEST_CHUNK))))
        near = BOUNDARY.search(text, max(start - 200, 0), start + 200) if rng.random() < 0.5 else None
        start = near.end() if near else start
        near = BOUNDARY.search(text, start + size // 2, start + size * 3 // 2) if rng.random() < 0.5 else None
        end = near.end() if near else min(line_end(text, start + size) + 1, len(text))
        return text[start:end]

    def _window(self, rng: random.Random, length: int) -> list[int]:
        text, start = self._place(rng)
        return [self.tokenizer.bos, *self.tokenizer.sp(text[start : start + 6 * length])][:length]
