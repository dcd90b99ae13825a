"""Measure CodeLlama-tiny on held-out texts: bits per byte, infilling, function bodies, repetition.

Bits per byte are scored by the trainable model of tiny_model.py, all generation runs through the package's own
`Llama`. Both compute in float32 on the bfloat16 weights in the folder and decode greedily, so the same folder
gives the same figures.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import math
import random
import tokenize
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from tiny_corpus import (
    HELD_OUT_PACKAGE,
    TESTS,
    Document,
    functions,
    library_documents,
    parses,
    read_documents,
)
from tiny_model import TinyConfig, TinyLlama
from tiny_packages import packages
from tiny_tokenizer import TinyTokenizer
from torch.nn import functional as F

from llama import Llama

Figures = dict[str, float | int]
PREFIX_CHARACTERS, SUFFIX_CHARACTERS = 900, 600
LINE_TOKENS, BODY_TOKENS, ANSWER_TOKENS = 40, 160, 64
ANSWERS = 200
PACKAGE_SHARE = 10  # every tenth file of the held-out package is scored
REPEATED_TOKENS, TIMES = 8, 3


@dataclass
class HeldOut:
    """The texts that are measured on, and the library as a compressor's dictionary."""

    modules: list[Document]
    package: list[Document]
    library: list[Document]

    @classmethod
    def read(cls) -> HeldOut:
        library, modules, _ = library_documents()
        package = next(package for package in packages() if package.name == HELD_OUT_PACKAGE)
        files = read_documents(HELD_OUT_PACKAGE, package.files())
        return cls(modules, [d for d in files if not TESTS.search(d.name)], library)


def load_folder(folder: Path) -> tuple[TinyLlama, TinyTokenizer]:
    """Read the finished folder back, to measure what is on the disk."""
    tokenizer = TinyTokenizer((folder / "tokenizer.model").read_bytes())
    config = TinyConfig(**json.loads((folder / "params.json").read_text()))
    weights = torch.load(folder / "consolidated.00.pth", weights_only=True, mmap=True)
    model = TinyLlama(config, tokenizer.vocab_size)
    model.load_state_dict({key: value.float() for key, value in weights.items()})
    return model.eval(), tokenizer


@torch.inference_mode()
def token_nats(model: TinyLlama, ids: list[int]) -> float:
    """The sum over ids[1:]. Each token sees at least half a context, if that many come before it."""
    nats, stride = 0.0, model.context // 2
    for start in range(0, max(len(ids) - 1 - stride, 1), stride):
        window = torch.tensor([ids[start : start + model.context + 1]])
        each = F.cross_entropy(model(window[:, :-1])[0], window[0, 1:], reduction="none")
        nats += each[0 if start == 0 else stride :].double().sum().item()
    return nats


def bits_per_byte(model: TinyLlama, tokenizer: TinyTokenizer, documents: list[Document]) -> float:
    """The code length of whole files, from bos to eos, divided by their UTF-8 bytes."""
    nats = sum(token_nats(model, tokenizer.document(tokenizer.sp(d.text))) for d in documents)
    return nats / math.log(2) / sum(len(d.text.encode()) for d in documents)


def compressor_yardsticks(held_out: HeldOut) -> Figures:
    """Bits per byte of compressors; the last has read the standard library before, as the model has."""
    held = "".join(d.text for d in held_out.modules).encode()
    read = "".join(d.text for d in held_out.library).encode()

    def packed(data: bytes) -> int:
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 26}]
        return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters))

    return {
        "gzip_bits_per_byte": 8 * len(gzip.compress(held, 9)) / len(held),
        "xz_bits_per_byte": 8 * packed(held) / len(held),
        "xz_after_library_bits_per_byte": 8 * (packed(read + held) - packed(read)) / len(held),
    }


def code_lines(text: str) -> list[int]:
    """Indices of lines with at least three tokens of code. Comments and multi-line strings do not count."""
    counts: Counter[int] = Counter()
    inside: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.start[0] != token.end[0] and token.string.strip():
            inside.update(range(token.start[0], token.end[0] + 1))
        if token.type in (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING):
            counts[token.start[0]] += 1
    return [line - 1 for line, count in counts.items() if count >= 3 and line not in inside]


def infilling(llama: Llama, modules: list[Document], samples: int) -> Figures:
    """Masked lines of code, with their indent: which share ends by EOT, is exact, leaves a text that parses.

    Trailing spaces do not count. A text is the whole module, of which the prompt shows what is near the hole.
    """
    places = [(document.text.split("\n"), line) for document in modules for line in code_lines(document.text)]
    chosen = random.Random(0).sample(places, min(samples, len(places)))
    before = ["".join(f"{line}\n" for line in lines[:masked]) for lines, masked in chosen]
    after = ["".join(f"\n{line}" for line in lines[masked + 1 :]) for lines, masked in chosen]
    figures: Figures = {"lines": len(chosen)}
    for order in ("psm", "spm"):
        fills = llama.text_infilling(
            [text[-PREFIX_CHARACTERS:] for text in before],
            [text[:SUFFIX_CHARACTERS] for text in after],
            temperature=0,
            max_gen_len=LINE_TOKENS,
            suffix_first=order == "spm",
        )
        texts = [fill["generation"] for fill in fills]
        exact = sum(
            text.rstrip() == lines[at].rstrip() for text, (lines, at) in zip(texts, chosen, strict=True)
        )
        whole = sum(parses("".join(parts)) for parts in zip(before, texts, after, strict=True))
        ended = sum(fill["finish_reason"] == "stop" for fill in fills)
        for name, count in (("ended", ended), ("exact", exact), ("parses", whole)):
            figures[f"{order}_{name}"] = count / len(chosen)
    return figures


def cut_at_dedent(body: str, is_cut_off: bool) -> str:
    """The body up to the first line at column 0, without a last line that the token limit cut off."""
    lines = body.split("\n")
    end = next((i for i, line in enumerate(lines) if line.strip() and not line[0].isspace()), None)
    if end is None:
        end = len(lines) - (1 if is_cut_off else 0)
    return "\n".join(lines[:end])


def function_bodies(llama: Llama, modules: list[Document]) -> Figures:
    """Share of bodies, generated from `def` line and docstring alone, that are not empty and parse."""
    heads = [function.head for document in modules for function in functions(document)]
    # The longest docstrings leave no room: no figure is made of those.
    heads = [head for head in heads if len(head) < 2000]
    written = llama.text_completion([head + "\n" for head in heads], temperature=0, max_gen_len=BODY_TOKENS)
    parsed = 0
    for head, result in zip(heads, written, strict=True):
        body = cut_at_dedent(result["generation"], result["finish_reason"] == "length")
        parsed += bool(body.strip()) and parses(f"{head}\n{body}\n")
    return {"bodies": len(heads), "bodies_that_parse": parsed / len(heads)}


def repeats(text: str, ids: list[int]) -> bool:
    """Whether a line that is not blank, or a run of REPEATED_TOKENS tokens, comes TIMES times."""
    lines = Counter(line.strip() for line in text.split("\n") if line.strip())
    windows = Counter(tuple(ids[at : at + REPEATED_TOKENS]) for at in range(len(ids) - REPEATED_TOKENS + 1))
    return any(count >= TIMES for counter in (lines, windows) for count in counter.values())


def repetition(llama: Llama, held_out: HeldOut) -> Figures:
    """Share of ANSWERS `[INST]` answers, to descriptions of held-out functions, that repeat themselves."""
    asked = [f for d in (*held_out.modules, *held_out.package) for f in functions(d) if len(f.summary) < 300]
    chosen = random.Random(0).sample(asked, ANSWERS)
    dialogs = [[{"role": "user", "content": f"Write this Python function: {f.summary}"}] for f in chosen]
    answers = llama.chat_completion(dialogs, temperature=0, max_gen_len=ANSWER_TOKENS)  # type: ignore[arg-type]
    texts = [answer["generation"]["content"] for answer in answers]
    ids = [llama.tokenizer.encode(text, bos=False, eos=False) for text in texts]
    return {"answers": ANSWERS, "answers_that_repeat": sum(map(repeats, texts, ids)) / ANSWERS}


def evaluate(folder: Path, samples: int = 400) -> Figures:
    """All figures of the model card."""
    held_out = HeldOut.read()
    model, tokenizer = load_folder(folder)
    figures: Figures = {
        "bits_per_byte": bits_per_byte(model, tokenizer, held_out.modules),
        "package_bits_per_byte": bits_per_byte(model, tokenizer, held_out.package[::PACKAGE_SHARE]),
        **compressor_yardsticks(held_out),
    }
    with Llama.build(folder, max_seq_len=1024, max_batch_size=64, device="cpu", dtype="float32") as llama:
        figures |= infilling(llama, held_out.modules, samples)
        figures |= function_bodies(llama, held_out.modules)
        figures |= repetition(llama, held_out)
    return figures
