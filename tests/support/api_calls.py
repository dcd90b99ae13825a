"""Prompts, and ids and scores of them by transformers, for tests of the calls of `Llama`."""

from __future__ import annotations

import functools

import torch
from tiny_llama import tiny_llama, twin_logits
from tiny_tokenizers import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PROMPTS = [
    "def return self",
    "a b <PRE> c",
    "",
    "    return x(a, b)[0] + 1.5\n",
    "漢字 é 0123456789 class import",
]
DIALOGS = [
    [{"role": "user", "content": "return self"}],
    [{"role": "system", "content": "class"}, {"role": "user", "content": " list "}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ],
]
USER = {"role": "user", "content": "a"}
NEVER = 10**6  # a stop token that no id equals
LIMIT = 128  # max_seq_len of the `llama` fixture


@functools.cache
def other(kind="infilling", shape="gqa", max_batch_size=4, seed=None):
    return tiny_llama(shape, kind, max_batch_size=max_batch_size, seed=seed)


def encode(text):
    return TOKENIZER.encode(text, bos=True, eos=False)


def log_softmax(ids, shape="gqa"):
    return torch.log_softmax(twin_logits(ids, shape).double(), dim=-1)


def twin_scores(ids, shape="gqa"):
    """Log-probability of each id but the first, by the twin."""
    return log_softmax(ids, shape)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def only(llama, monkeypatch, allowed):
    """Make a model that writes nothing but these ids."""
    plain, mask = llama.model.logits, torch.full((TOKENIZER.n_words,), -1e4)
    mask[list(allowed)] = 0
    monkeypatch.setattr(llama.model, "logits", lambda hidden: plain(hidden) + mask)
