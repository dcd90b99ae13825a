"""From text to token ids: CodeLlama-tiny's tokenizer, and the samples that the model is trained on.

The samples have the family's token formats: plain code, infilling (prefix-suffix-middle and
suffix-prefix-middle) and `[INST]` turns. `sp` encodes with SentencePiece's dummy prefix space, `sp0` without
it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_pb
from tiny_corpus import Corpus, Document, Function, functions
from torch import Tensor

VOCAB_SIZE = 4096
INFILLING_PIECES = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
INSTRUCTION_SHARE = 0.12
FUNCTION_SHARE = 0.05
INFILLING_SHARE = 0.75  # of the remaining code chunks, which makes 62% of all samples
TESTS_PER_EPOCH = 0.25
BOUNDARY = re.compile(r"\n(?=[ \t]{0,4}(?:def |class |async def |@))")


class TinyTokenizer:
    """SentencePiece with and without the dummy prefix, and the ids of the control pieces."""

    def __init__(self, model_proto: bytes) -> None:
        proto = sentencepiece_pb.ModelProto()
        proto.ParseFromString(model_proto)
        proto.normalizer_spec.add_dummy_prefix = False
        self.proto = model_proto
        self._with_prefix = sentencepiece.SentencePieceProcessor(model_proto=model_proto)
        self._without = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        self.vocab_size = self._with_prefix.vocab_size()
        self.bos, self.eos = self._with_prefix.bos_id(), self._with_prefix.eos_id()
        self.pre, self.suf, self.mid, self.eot = map(self._with_prefix.piece_to_id, INFILLING_PIECES)

    def sp(self, text: str) -> list[int]:
        return self._with_prefix.encode(text)

    def sp0(self, text: str) -> list[int]:
        return self._without.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self._with_prefix.decode(ids)

    def decode_bare(self, ids: list[int]) -> str:
        """Decode a continuation, without removing a leading space."""
        return self._without.decode(ids)

    def psm(self, prefix: str, suffix: str) -> list[int]:
        return [self.bos, self.pre, *self.sp(prefix), self.suf, *self.sp0(suffix), self.mid]

    def spm(self, prefix: str, suffix: str) -> list[int]:
        return [self.bos, self.pre, self.suf, *self.sp0(suffix), self.mid, *self.sp(prefix)]


def train_tokenizer(documents: Iterable[Document], threads: int) -> bytes:
    """A BPE model with the family's settings and the four infilling pieces at its end, serialised."""
    lines = (line for document in documents for line in document.text.split("\n") if line.strip())
    buffer = _ByteSink()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=buffer,
        model_type="bpe",
        vocab_size=VOCAB_SIZE - len(INFILLING_PIECES),
        character_coverage=0.9995,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        # These lines come from the middle of a file: with a prefix space, indents of 5 and 9 would be
        # learned.
        add_dummy_prefix=False,
        pad_id=-1,
        num_threads=threads,
        minloglevel=2,
    )
    proto = sentencepiece_pb.ModelProto()
    proto.ParseFromString(buffer.data)
    proto.normalizer_spec.add_dummy_prefix = True
    proto.trainer_spec.vocab_size = VOCAB_SIZE
    for piece in INFILLING_PIECES:
        # Ordinary pieces with the next lower scores, as in the family, so text can encode to them there too.
        proto.pieces.add(piece=piece, score=proto.pieces[-1].score - 1, type=proto.SentencePiece.NORMAL)
    return proto.SerializeToString()


class _ByteSink:
    """A file with the one method that SentencePiece's trainer calls."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data


def middle_span(text: str, rng: random.Random) -> tuple[int, int]:
    """Start and end of the part to fill in: a random span, a line, the rest of a line, or a few lines."""
    kind = rng.random()
    starts = [m.start() for m in re.finditer(r"^[ \t]*\S", text, re.MULTILINE)]
    if kind < 0.35 or not starts:
        first, last = sorted(rng.randint(0, len(text)) for _ in range(2))
        return first, last
    chosen = rng.randrange(len(starts))
    start, end = starts[chosen], _line_end(text, starts[chosen])
    code = start + re.compile(r"[ \t]*").match(text, start).end() - start  # type: ignore[union-attr]
    if kind < 0.65:
        return rng.choice((start, code)), end
    if kind < 0.85:
        cursor = rng.randint(code, end)
        return cursor, end if rng.random() < 0.7 else rng.randint(cursor, end)
    last_line = min(len(starts) - 1, chosen + rng.randint(1, 4))
    return rng.choice((start, code)), _line_end(text, starts[last_line])


def _line_end(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end < 0 else end


def infilling_ids(text: str, tokenizer: TinyTokenizer, rng: random.Random) -> list[int]:
    """One infilling sample; half of them have the prefix first, half the suffix."""
    start, end = middle_span(text, rng)
    layout = tokenizer.psm if rng.random() < 0.5 else tokenizer.spm
    return [*layout(text[:start], text[end:]), *tokenizer.sp0(text[start:end]), tokenizer.eot]


def instruction_ids(function: Function, tokenizer: TinyTokenizer, rng: random.Random) -> list[int]:
    """One `[INST]` turn: mostly from a description to a function, sometimes the other way."""
    kind = rng.random()
    if kind < 0.4:
        user, answer = f"Write a Python function `{function.signature}`. {function.summary}", function.source
    elif kind < 0.75:
        user, answer = f"Write this Python function: {function.summary}", function.source
    else:
        user, answer = f"Explain this Python function.\n\n{function.bare}", function.docstring
    text = f"[INST] {user.strip()} [/INST] {answer.strip()} "
    return [tokenizer.bos, *tokenizer.sp(text), tokenizer.eos]


def function_ids(function: Function, tokenizer: TinyTokenizer) -> list[int]:
    """One function as a whole document, so that the model learns where a body ends."""
    return [tokenizer.bos, *tokenizer.sp(function.source + "\n"), tokenizer.eos]


@dataclass
class Position:
    """How far the stream has come in its pass over the documents."""

    epoch: int = -1
    document: int = 0
    offset: int = 0


class SampleStream:
    """Endless rows of packed samples; its state can be saved and resumed."""

    def __init__(self, corpus: Corpus, tokenizer: TinyTokenizer, seed: int) -> None:
        self.corpus, self.tokenizer, self.seed = corpus, tokenizer, seed
        self.rng = random.Random(seed)
        self.position = Position()
        self.order: list[Document] = []
        self.functions = [f for d in corpus.library for f in functions(d) if len(f.source) < 1500]
        picked = self.rng.sample(corpus.library, min(40, len(corpus.library)))
        characters = sum(len(d.text) for d in picked)
        self.chars_per_token = characters / sum(len(tokenizer.sp(d.text)) for d in picked)

    def state(self) -> dict[str, Any]:
        return {"rng": self.rng.getstate(), "position": vars(self.position).copy()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.rng.setstate(state["rng"])
        self.position = Position(**state["position"])
        self.order = self._shuffled(self.position.epoch)

    def batch(self, rows: int, length: int) -> Tensor:
        """Token ids [rows, length + 1]: inputs and, shifted by one, targets."""
        return torch.tensor([self._row(length + 1) for _ in range(rows)])

    def _row(self, length: int) -> list[int]:
        """Whole samples while they fit, then plain code, which may be cut anywhere."""
        row: list[int] = []
        while len(row) < length:
            ids = self._sample(length)
            if len(row) + len(ids) > length:
                ids = self._plain_window(length - len(row))
            row += ids
        return row

    def _sample(self, length: int) -> list[int]:
        kind = self.rng.random()
        if kind < INSTRUCTION_SHARE:
            return self._fitting(lambda f: instruction_ids(f, self.tokenizer, self.rng), length)
        if kind < INSTRUCTION_SHARE + FUNCTION_SHARE:
            return self._fitting(lambda f: function_ids(f, self.tokenizer), length)
        text, is_end = self._chunk(length)
        if self.rng.random() >= INFILLING_SHARE:
            ids = [self.tokenizer.bos, *self.tokenizer.sp(text)] + [self.tokenizer.eos] * is_end
            return ids[:length]
        while len(ids := infilling_ids(text, self.tokenizer, self.rng)) > length:
            text = text[: len(text) * 4 // 5]
        return ids

    def _fitting(self, encode: Callable[[Function], list[int]], length: int) -> list[int]:
        while len(ids := encode(self.rng.choice(self.functions))) > length:
            pass
        return ids

    def _chunk(self, length: int) -> tuple[str, bool]:
        """The next piece of the current file, and whether the file ends with it."""
        if self.position.document >= len(self.order):
            self.position = Position(epoch=self.position.epoch + 1)
            self.order = self._shuffled(self.position.epoch)
        text, start = self.order[self.position.document].text, self.position.offset
        end = start + int(length * self.chars_per_token * self.rng.uniform(0.15, 0.95))
        end = self._cut(text, end)
        is_end = end >= len(text)
        if is_end:
            self.position.document, self.position.offset = self.position.document + 1, 0
        else:
            self.position.offset = end
        return text[start:end], is_end

    def _cut(self, text: str, end: int) -> int:
        """The start of a line near `end`; half of the time that of a function or class."""
        near = BOUNDARY.search(text, max(end - 200, 0), end + 200) if self.rng.random() < 0.5 else None
        return near.end() if near else min(_line_end(text, end) + 1, len(text))

    def _plain_window(self, length: int) -> list[int]:
        text = self.rng.choice(self.corpus.library).text
        start = text.find("\n", self.rng.randrange(len(text))) + 1
        return [self.tokenizer.bos, *self.tokenizer.sp(text[start : start + 6 * length])][:length]

    def _shuffled(self, epoch: int) -> list[Document]:
        rng = random.Random(f"{self.seed}/{epoch}")
        tests = rng.sample(self.corpus.tests, int(len(self.corpus.tests) * TESTS_PER_EPOCH))
        order = self.corpus.library + tests
        rng.shuffle(order)
        return order
