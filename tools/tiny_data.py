"""Token files of CodeLlama-tiny: made once by `prepare`, then read by training, on any machine.

tokenizer.model         SentencePiece
plain.npy               [tokens] uint16: documents between bos and eos, shuffled, the library's three times
mix.npy, marks.npy      [rows, 1025] uint16, uint8: rows of tiny_samples.py
held_out.npy, held_out_package.npy   [tokens] uint16: held-out documents between bos and eos
facts.json              what a model card says about the data; bytes of the held-out texts
"""

from __future__ import annotations

import json
import platform
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece
import torch
from tiny_corpus import HELD_OUT, LIBRARY, Corpus, Document, functions, read_corpus
from tiny_packages import notices
from tiny_samples import LIBRARY_WEIGHT, RowMaker
from tiny_tokenizer import TinyTokenizer, train_tokenizer
from torch import Tensor

ROW = 1024  # tokens to predict; a row holds one more
TOKENIZER_CHARACTERS = 25_000_000
LONGEST_FUNCTION = 1500  # characters
NOTICES = "THIRD-PARTY-NOTICES.txt"
Tokens = npt.NDArray[np.uint16]


def tokenizer_texts(documents: list[Document], rng: random.Random) -> list[str]:
    """The library, and files of packages drawn at random."""
    texts = [d.text for d in documents if d.package == LIBRARY]
    left = TOKENIZER_CHARACTERS - sum(map(len, texts))
    for document in rng.sample(documents, len(documents)):
        if document.package != LIBRARY and left > 0:
            texts.append(document.text)
            left -= len(document.text)
    return texts


def encoded(tokenizer: TinyTokenizer, documents: list[Document]) -> list[Tokens]:
    """Each document between bos and eos. A text that does not survive the tokenizer is an error."""
    made = []
    for first in range(0, len(documents), 500):
        some = documents[first : first + 500]
        for document, ids in zip(some, tokenizer.sp_all([d.text for d in some]), strict=True):
            if tokenizer.decode(ids) != document.text:
                raise RuntimeError(f"{document.package}: {document.name} does not survive the tokenizer")
            made.append(np.array(tokenizer.document(ids), dtype=np.uint16))
    return made


def plain_stream(documents: list[Document], tokens: list[Tokens], rng: random.Random) -> Tokens:
    """All documents in random order, the library's LIBRARY_WEIGHT times."""
    times = [LIBRARY_WEIGHT if document.package == LIBRARY else 1 for document in documents]
    order = [index for index, count in enumerate(times) for _ in range(count)]
    rng.shuffle(order)
    return np.concatenate([tokens[index] for index in order])


def facts(corpus: Corpus, tokenizer: TinyTokenizer, tokens: int) -> dict[str, Any]:
    """What the card says about the data, and the sizes that bits per byte are counted by."""
    sizes: dict[str, int] = {}
    for document in corpus.train:
        sizes[document.package] = sizes.get(document.package, 0) + len(document.text)
    licences = {package.name: (package.version, package.licence) for package in corpus.packages}
    licences[LIBRARY] = (platform.python_version(), "PSF-2.0")
    return {
        "packages": [
            {"name": name, "version": licences[name][0], "licence": licences[name][1], "characters": size}
            for name, size in sorted(sizes.items(), key=lambda item: -item[1])
        ],
        "files": len(corpus.train),
        "refused": corpus.refused,
        "dropped": corpus.dropped,
        "held_out": list(HELD_OUT),
        "held_out_bytes": sum(len(d.text.encode()) for d in corpus.held_out),
        "held_out_package_bytes": sum(len(d.text.encode()) for d in corpus.held_out_package),
        "tokens": tokens,
        "vocab_size": tokenizer.vocab_size,
        "sentencepiece": sentencepiece.__version__,
    }


def write_rows(folder: Path, maker: RowMaker, rows: int) -> None:
    """Write mix.npy and marks.npy."""
    ids = np.lib.format.open_memmap(folder / "mix.npy", "w+", np.uint16, (rows, maker.length))
    marks = np.lib.format.open_memmap(folder / "marks.npy", "w+", np.uint8, (rows, maker.length))
    for number in range(rows):
        ids[number], marks[number] = maker.row(number)
    ids.flush()
    marks.flush()


def prepare(folder: Path, vocab_size: int, mix_rows: int, seed: int) -> None:
    """Write the folder's files; facts.json comes last, so a folder that has it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = read_corpus()
    rng = random.Random(seed)
    tokenizer = TinyTokenizer(train_tokenizer(tokenizer_texts(corpus.train, rng), vocab_size))
    (folder / "tokenizer.model").write_bytes(tokenizer.proto)
    (folder / NOTICES).write_text(notices(corpus.packages), encoding="utf-8")
    tokens = encoded(tokenizer, corpus.train)
    np.save(folder / "plain.npy", plain_stream(corpus.train, tokens, rng))
    for name in ("held_out", "held_out_package"):
        np.save(folder / f"{name}.npy", np.concatenate(encoded(tokenizer, getattr(corpus, name))))
    short = [f for d in corpus.train for f in functions(d) if len(f.source) <= LONGEST_FUNCTION]
    maker = RowMaker(corpus.train, short, tokenizer, ROW + 1, seed)
    write_rows(folder, maker, mix_rows)
    about = facts(corpus, tokenizer, sum(map(len, tokens))) | {"functions": len(short), "seed": seed}
    (folder / "facts.json").write_text(json.dumps(about, indent=2) + "\n")


@dataclass
class Position:
    """How many rows of a phase were read. They come in an order of their own in each pass."""

    plain: int = 0
    mix: int = 0


class TokenFiles:
    """A prepared folder, read as batches. The same position gives the same rows."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        try:
            self.facts = json.loads((folder / "facts.json").read_text())
        except FileNotFoundError:
            raise SystemExit(f"{folder} is no finished folder of `train_tiny.py prepare`") from None
        self.tokenizer = TinyTokenizer((folder / "tokenizer.model").read_bytes())
        self.plain = np.load(folder / "plain.npy", mmap_mode="r")
        self.mix = np.load(folder / "mix.npy", mmap_mode="r")
        self.marks = np.load(folder / "marks.npy", mmap_mode="r")
        self._orders: dict[tuple[str, int], npt.NDArray[np.int64]] = {}

    def plain_rows(self, position: Position, rows: int) -> tuple[Tensor, Tensor]:
        """Ids [rows, 1025] and no marks. Each pass cuts the stream at other places."""
        per_pass = (len(self.plain) - 1) // ROW - 1
        made = []
        for number in range(position.plain, position.plain + rows):
            epoch, index = divmod(number, per_pass)
            shift = random.Random(f"{self.seed}/shift/{epoch}").randrange(ROW)
            start = shift + ROW * int(self._order("plain", epoch, per_pass)[index])
            made.append(self.plain[start : start + ROW + 1])
        position.plain += rows
        ids = torch.from_numpy(np.stack(made).astype(np.int64))
        return ids, torch.zeros_like(ids)

    def mix_rows(self, position: Position, rows: int) -> tuple[Tensor, Tensor]:
        """Ids [rows, 1025] and marks."""
        chosen = []
        for number in range(position.mix, position.mix + rows):
            epoch, index = divmod(number, len(self.mix))
            chosen.append(self._order("mix", epoch, len(self.mix))[index])
        position.mix += rows
        ids, marks = self.mix[chosen].astype(np.int64), self.marks[chosen].astype(np.int64)
        return torch.from_numpy(ids), torch.from_numpy(marks)

    def held_out(self, name: str) -> tuple[Tensor, int]:
        """Rows [rows, 1025] of a held-out text, without the last incomplete one, and the text's bytes a row."""
        ids = np.load(self.folder / f"{name}.npy").astype(np.int64)
        count = (len(ids) - 1) // ROW
        rows = np.stack([ids[row * ROW : row * ROW + ROW + 1] for row in range(count)])
        return torch.from_numpy(rows), self.facts[f"{name}_bytes"] * ROW / len(ids)

    def _order(self, kind: str, epoch: int, length: int) -> npt.NDArray[np.int64]:
        if (kind, epoch) not in self._orders:
            # Seeds of the generator are numbers; the text makes one for each phase and pass.
            seed = random.Random(f"{self.seed}/{kind}/{epoch}").getrandbits(63)
            self._orders[kind, epoch] = np.random.default_rng(seed).permutation(length)
        return self._orders[kind, epoch]
