"""Infilling that clients send as text: `<PRE> prefix <SUF>suffix <MID>` is split, so that exact ids can be made.

A tokenizer never turns such text into control ids here, so without this the model would see the markers as
plain text. Four spellings are in use; what they share is that each marker stands exactly once:

    <PRE> p <SUF>s <MID>         Continue, Zed, llm-vscode, llm-ls, Tabby, old templates of Ollama
    <PRE> p <SUF> s <MID>        llama-coder, Twinny: the space too many stays, as the suffix's first character
    context<PRE>p<SUF>s<MID>     jupyterlab-cellsense
    <PRE> <SUF>s <MID> p         Hugging Face, lmdeploy: the SPM order

In the first two spellings one space after <PRE>, before <SUF> and before <MID> belongs to the marker (as in
the pieces `▁<SUF>` and `▁<MID>`, and in SentencePiece's dummy space in front of the prefix). In the third
none does, and it is told from the others by a space that is missing in one of the three places.
"""

from __future__ import annotations

from typing import NamedTuple

from .problems import Problem

__all__ = ["MARKERS", "FimText", "looks_like_fim", "split_fim"]

MARKERS = ("<PRE>", "<SUF>", "<MID>")


class FimText(NamedTuple):
    """What a text with markers means; suffix_first: in the SPM order."""

    prefix: str
    suffix: str
    suffix_first: bool = False


def looks_like_fim(text: str) -> bool:
    """Whether a text holds all three markers. HTML may hold <PRE>, and is left alone."""
    return all(marker in text for marker in MARKERS)


def split_fim(text: str) -> FimText | None:
    """The two sides of the hole in a text with markers; None if it is no infilling.

    Text before <PRE> goes in front of the prefix.

    Raises:
        Problem: 400; it holds all markers, but one of them more than once, so nobody can say which counts.
    """
    if not looks_like_fim(text):
        return None
    for marker in MARKERS:
        if (count := text.count(marker)) > 1:
            raise Problem(
                400,
                "invalid_request",
                f"the text holds {marker} {count} times, so where the middle belongs is not certain;"
                " send prefix and suffix in fields of their own (suffix, or input_prefix and input_suffix)",
                "prompt",
            )
    pre, suf, mid = (text.index(marker) for marker in MARKERS)
    if not pre < suf < mid:
        return None
    head, before = text[:pre], text[pre + len("<PRE>") : suf]
    after, tail = text[suf + len("<SUF>") : mid], text[mid + len("<MID>") :]
    if not tail:
        return _prefix_first(head, before, after)
    if before in ("", " "):
        return _suffix_first(head, before, after, tail)
    return None


def _prefix_first(head: str, before: str, after: str) -> FimText:
    if before.startswith(" ") and before.endswith(" ") and after.endswith(" "):
        # A single space between <PRE> and <SUF> is the space of both.
        before, after = before[1:-1], after[:-1]
    return FimText(head + before, after)


def _suffix_first(head: str, between: str, after: str, tail: str) -> FimText:
    if between == " ":
        after, tail = after.removesuffix(" "), tail.removeprefix(" ")
    return FimText(head + tail, after, suffix_first=True)
