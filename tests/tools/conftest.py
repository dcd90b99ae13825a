"""The makers of CodeLlama-tiny lie in tools/; a small prepared folder of theirs, made once."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
from ranks import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import numpy as np
from tiny_corpus import LIBRARY, Document, functions
from tiny_data import NOTICES, ROW, encoded, plain_stream, write_rows
from tiny_samples import RowMaker
from tiny_tokenizer import TinyTokenizer, train_tokenizer

# Enough code for a row or two, and for a tokenizer. The makers themselves are no part of what they read.
FILES = ("tiny_corpus.py", "tiny_eval.py", "tiny_model.py", "tiny_samples.py", "train_tiny.py")


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    texts = [(ROOT / "tools" / name).read_text(encoding="utf-8") for name in FILES]
    packages = [LIBRARY, *["other"] * (len(FILES) - 1)]
    return [Document(*each) for each in zip(packages, FILES, texts, strict=True)]


@pytest.fixture(scope="session")
def tokenizer(documents: list[Document]) -> TinyTokenizer:
    return TinyTokenizer(train_tokenizer([d.text for d in documents], 512, threads=1))


@pytest.fixture(scope="session")
def maker(documents: list[Document], tokenizer: TinyTokenizer) -> RowMaker:
    found = [f for d in documents for f in functions(d)]
    return RowMaker(documents, found, tokenizer, ROW + 1, seed=0)


@pytest.fixture(scope="session")
def data(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[Document],
    tokenizer: TinyTokenizer,
    maker: RowMaker,
) -> Path:
    """A folder as `prepare` writes it, from the documents above."""
    folder = tmp_path_factory.mktemp("data")
    tokens = encoded(tokenizer, documents)
    (folder / "tokenizer.model").write_bytes(tokenizer.proto)
    np.save(folder / "plain.npy", plain_stream(documents, tokens, random.Random(0)))
    for name in ("held_out", "held_out_package"):
        np.save(folder / f"{name}.npy", tokens[0])
    write_rows(folder, maker, 12)
    size = len(documents[0].text.encode())
    facts = {
        "packages": [{"name": "other", "version": "1.0", "licence": "MIT", "characters": 500_000}],
        **{key: ["name"] for key in ("held_out", "refused", "dropped")},
        **dict.fromkeys(("files", "tokens"), 1000),
        **dict.fromkeys(("held_out_bytes", "held_out_package_bytes"), size),
        "sentencepiece": "0.2",
    }
    (folder / "facts.json").write_text(json.dumps(facts))
    (folder / NOTICES).write_text("The MIT licence\n")
    return folder
