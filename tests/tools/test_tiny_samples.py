"""Laws of the samples: the family's formats, what is marked, and the shares of a row."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from tiny_corpus import Document, functions
from tiny_data import ROW
from tiny_samples import SHARES, RowMaker, hole, instruction, middle_span
from tiny_tokenizer import TinyTokenizer

from llama.prompts import chat_prompt, infilling_prompt
from llama.tokenizer import Tokenizer

TEXT = "def double(x):\n    y = 2 * x\n    return y\n\n\ndef half(x):\n    return x / 2\n"


def test_a_text_survives_the_tokenizer(documents: list[Document], tokenizer: TinyTokenizer) -> None:
    for document in documents:
        assert tokenizer.decode(tokenizer.sp(document.text)) == document.text
        assert tokenizer.decode_bare(tokenizer.sp0(document.text)) == document.text


def test_a_hole_is_the_prompt_that_the_runtime_makes_and_then_the_marked_middle(
    tokenizer: TinyTokenizer, tmp_path: Path
) -> None:
    """Prompt, middle and EOT, for both orders, so that the model is asked for what it was trained on."""
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.proto)
    runtime = Tokenizer(str(tmp_path / "tokenizer.model"))
    seen: Counter[bool] = Counter()
    for seed in range(200):
        ids, marks = hole(TEXT, tokenizer, random.Random(seed))
        start, end = middle_span(TEXT, random.Random(seed))
        suffix_first = ids[2] == tokenizer.suf and ids[:3] == [tokenizer.bos, tokenizer.pre, tokenizer.suf]
        prompt = infilling_prompt(runtime, TEXT[:start], TEXT[end:], suffix_first=suffix_first)
        length = len(prompt.tokens)
        assert tuple(ids[:length]) == prompt.tokens
        decode = tokenizer.decode if suffix_first and start == 0 else tokenizer.decode_bare
        assert decode(ids[length:-1]) == TEXT[start:end]
        assert ids[-1] == tokenizer.eot
        assert marks == [0] * length + [1] * (len(ids) - length)
        seen[suffix_first] += 1
    assert 0.5 < seen[True] / 200 < 0.7


def test_a_turn_is_the_prompt_that_the_runtime_makes_and_then_the_answer(
    documents: list[Document], tokenizer: TinyTokenizer, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.proto)
    runtime = Tokenizer(str(tmp_path / "tokenizer.model"))
    described = RowMaker(documents, [f for d in documents for f in functions(d)], tokenizer, ROW, 0).untagged
    systems = 0
    for seed in range(200):
        rng = random.Random(seed)
        function = rng.choice(described)
        ids = instruction(function, tokenizer, rng)
        user, answer = tokenizer.decode(ids[1:-1]).removeprefix("[INST] ").split(" [/INST]", 1)
        dialog = [{"role": "user", "content": user}]
        if user.startswith("<<SYS>>\n"):
            system, user = user.removeprefix("<<SYS>>\n").split("\n<</SYS>>\n\n", 1)
            dialog = [{"role": "system", "content": system}, {"role": "user", "content": user}]
            systems += 1
        prompt = chat_prompt(runtime, dialog).tokens  # type: ignore[arg-type]  # plain dictionaries are messages too
        assert tuple(ids[: len(prompt)]) == prompt
        assert answer.strip() in (function.source.strip(), function.docstring.strip())
        assert ids[-1] == tokenizer.eos
    assert 0.2 < systems / 200 < 0.45


def test_holes_are_of_the_kinds_that_the_card_names() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(2000):
        start, end = middle_span(TEXT, random.Random(seed))
        middle = TEXT[start:end]
        begins = not TEXT[TEXT.rfind("\n", 0, start) + 1 : start].strip()
        ends = TEXT[end : end + 1] in ("\n", "")
        many = "\n" in middle
        kinds[
            "line"
            if begins and ends and not many
            else "lines"
            if begins and ends
            else "end"
            if ends
            else "rest"
        ] += 1
    # The ends of lines that were cut within an indent, or are short, count among the lines, hence the room.
    assert 0.45 < kinds["line"] / 2000 < 0.70
    assert 0.10 < kinds["end"] / 2000 < 0.25
    assert 0.10 < kinds["lines"] / 2000 < 0.25
    assert 0.02 < kinds["rest"] / 2000 < 0.12


def test_rows_are_full_and_hold_the_shares(maker: RowMaker, tokenizer: TinyTokenizer) -> None:
    rows = [maker.row(number) for number in range(60)]
    assert {len(part) for row in rows for part in row} == {ROW + 1}
    total = sum(maker._made.values())
    for kind, share in SHARES.items():
        assert maker._made[kind] / total == pytest.approx(share, abs=0.05)
    marked = Counter(token for ids, marks in rows for token, mark in zip(ids, marks, strict=True) if mark)
    assert marked[tokenizer.eot] == sum(ids.count(tokenizer.eot) for ids, _ in rows) > 60
    assert marked[tokenizer.pre] == marked[tokenizer.bos] == 0
