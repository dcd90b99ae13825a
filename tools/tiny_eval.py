"""Measure CodeLlama-tiny on the held-out modules: bits per byte, infilling, function bodies.

Decoding is greedy and in float32, on the bfloat16 weights in the folder, so the same folder gives the same
figures.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import math
import random
import tokenize
from pathlib import Path

import torch
from tiny_corpus import Corpus, Document, functions, parses
from tiny_model import Cache, TinyConfig, TinyLlama
from tiny_samples import TinyTokenizer
from torch import Tensor
from torch.nn import functional as F

Figures = dict[str, float | int]
PREFIX_CHARACTERS, SUFFIX_CHARACTERS = 900, 600
MAX_LINE_TOKENS, MAX_BODY_TOKENS = 64, 160


def load_folder(folder: Path) -> tuple[TinyLlama, TinyTokenizer]:
    """Read the finished folder back, to measure what is on the disk."""
    tokenizer = TinyTokenizer((folder / "tokenizer.model").read_bytes())
    config = TinyConfig(**json.loads((folder / "params.json").read_text()))
    weights = torch.load(folder / "consolidated.00.pth", weights_only=True, mmap=True)
    model = TinyLlama(config, tokenizer.vocab_size)
    model.load_state_dict({key: value.float() for key, value in weights.items()})
    return model.eval(), tokenizer


@torch.inference_mode()
def token_losses(model: TinyLlama, ids: list[int]) -> Tensor:
    """Nats [len(ids) - 1]. Each token sees at least half a context, if that many come before it."""
    losses, stride = [], model.context // 2
    for start in range(0, max(len(ids) - 1 - stride, 1), stride):
        window = torch.tensor([ids[start : start + model.context + 1]])
        each = F.cross_entropy(model(window[:, :-1])[0], window[0, 1:], reduction="none")
        losses.append(each if start == 0 else each[stride:])
    return torch.cat(losses)


def bits_per_byte(model: TinyLlama, tokenizer: TinyTokenizer, documents: list[Document]) -> float:
    """The code length of whole files, from bos to eos, divided by their UTF-8 bytes."""
    nats = 0.0
    for document in documents:
        ids = [tokenizer.bos, *tokenizer.sp(document.text), tokenizer.eos]
        nats += token_losses(model, ids).double().sum().item()
    return nats / math.log(2) / sum(len(d.text.encode()) for d in documents)


def compressor_yardsticks(corpus: Corpus) -> Figures:
    """Bits per byte of compressors; the last has read the training library before, like the model."""
    held = "".join(d.text for d in corpus.held_out).encode()
    read = "".join(d.text for d in corpus.library).encode()

    def packed(data: bytes) -> int:
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 26}]
        return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters))

    return {
        "gzip_bits_per_byte": 8 * len(gzip.compress(held, 9)) / len(held),
        "xz_bits_per_byte": 8 * packed(held) / len(held),
        "xz_after_library_bits_per_byte": 8 * (packed(read + held) - packed(read)) / len(held),
    }


@torch.inference_mode()
def greedy(model: TinyLlama, ids: list[int], stop_ids: set[int], max_new: int) -> list[int]:
    """The most likely continuation, without the stop id."""
    cache: Cache = []
    generated: list[int] = []
    step = torch.tensor([ids])
    while len(generated) < min(max_new, model.context - len(ids)):
        chosen = int(model(step, cache)[0, -1].argmax())
        if chosen in stop_ids:
            break
        generated.append(chosen)
        step = torch.tensor([[chosen]])
    return generated


def code_lines(text: str) -> list[int]:
    """Indices of lines with at least three tokens of code. Comments and multi-line strings do not count."""
    counts: dict[int, int] = {}
    inside: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.start[0] != token.end[0] and token.string.strip():
            inside.update(range(token.start[0], token.end[0] + 1))
        if token.type in (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING):
            counts[token.start[0]] = counts.get(token.start[0], 0) + 1
    return [line - 1 for line, count in counts.items() if count >= 3 and line not in inside]


def infill_exact(
    model: TinyLlama, tokenizer: TinyTokenizer, held_out: list[Document], samples: int
) -> Figures:
    """Share of masked lines that are filled in exactly, with their indent; trailing spaces do not count."""
    places = [
        (document.text.split("\n"), line) for document in held_out for line in code_lines(document.text)
    ]
    chosen = random.Random(0).sample(places, min(samples, len(places)))
    hits = {"psm": 0, "spm": 0}
    for lines, masked in chosen:
        prefix = "".join(line + "\n" for line in lines[:masked])[-PREFIX_CHARACTERS:]
        suffix = "".join("\n" + line for line in lines[masked + 1 :])[:SUFFIX_CHARACTERS]
        for layout in hits:
            ids = getattr(tokenizer, layout)(prefix, suffix)
            middle = greedy(model, ids, {tokenizer.eot, tokenizer.eos}, MAX_LINE_TOKENS)
            hits[layout] += tokenizer.decode_bare(middle).rstrip() == lines[masked].rstrip()
    return {
        "infill_lines": len(chosen),
        **{f"infill_exact_{key}": hit / len(chosen) for key, hit in hits.items()},
    }


def cut_at_dedent(body: str, is_cut_off: bool) -> str:
    """The body up to the first line at column 0, without a last line that the token limit cut off."""
    lines = body.split("\n")
    end = next((i for i, line in enumerate(lines) if line.strip() and not line[0].isspace()), None)
    if end is None:
        end = len(lines) - (1 if is_cut_off else 0)
    return "\n".join(lines[:end])


def function_bodies(model: TinyLlama, tokenizer: TinyTokenizer, held_out: list[Document]) -> Figures:
    """Share of bodies, generated from `def` line and docstring alone, that are not empty and parse."""
    heads = [function.head for document in held_out for function in functions(document)]
    parsed = 0
    for head in heads:
        prompt = [tokenizer.bos, *tokenizer.sp(head + "\n")][: model.context - MAX_BODY_TOKENS]
        written = greedy(model, prompt, {tokenizer.eos}, MAX_BODY_TOKENS)
        body = cut_at_dedent(tokenizer.decode_bare(written), len(written) == MAX_BODY_TOKENS)
        parsed += bool(body.strip()) and parses(f"{head}\n{body}\n")
    return {"bodies": len(heads), "bodies_that_parse": parsed / len(heads)}


def evaluate(folder: Path, corpus: Corpus, samples: int) -> Figures:
    """All figures of the model card."""
    model, tokenizer = load_folder(folder)
    return {
        "bits_per_byte": bits_per_byte(model, tokenizer, corpus.held_out),
        **compressor_yardsticks(corpus),
        **infill_exact(model, tokenizer, corpus.held_out, samples),
        **function_bodies(model, tokenizer, corpus.held_out),
    }
