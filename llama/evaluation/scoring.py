"""How well a model predicts texts: `score`, in bits per byte and nats per token.

A text is scored as the model would read it: its ids follow bos, and every id but bos counts. No eos is added. A text
that is longer than the context is read in windows that overlap by half; each begins with bos, and each id is scored
once, with at least half a window before it, or all that there is.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from ..api.arguments import naming_prompt, text_list
from ..api.options import Options
from ..errors import RequestError
from ..prompts import Prompt
from ..tokenizer import Tokenizer
from .ranks import Ranks

if TYPE_CHECKING:
    from ..engine import TokenScore
    from ..generation import Llama

__all__ = ["Score", "Window", "calls", "prompt_scores", "score", "scores", "texts_of_first_rank", "windows"]

_Item = TypeVar("_Item")

# Ids of one call of the engine. It keeps the scores of a call until all have ended: about 15 MB of these.
_CALL_TOKENS = 1 << 16
# Characters that are encoded at a time. SentencePiece takes 50 bytes for each, and longer for a long text.
_PART = 1 << 16
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Score:
    """How well a text, or several, were predicted.

    Args:
        nats: minus the sum of the log-probabilities of all tokens; natural logarithms.
        tokens: that were scored, so without bos.
        bytes: of the text in UTF-8.
    """

    nats: float
    tokens: int
    bytes: int

    @classmethod
    def total(cls, scores: Iterable[Score]) -> Score:
        """Of several texts together: each counts by its length."""
        every = list(scores)
        tokens, size = sum(each.tokens for each in every), sum(each.bytes for each in every)
        return cls(math.fsum(each.nats for each in every), tokens, size)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between vocabularies; NaN of an empty text."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    @property
    def nats_per_token(self) -> float:
        """The cross entropy, whose exponential is the perplexity; NaN of an empty text."""
        return self.nats / self.tokens if self.tokens else math.nan


class Window(NamedTuple):
    """Ids to run, bos first, of which those from index `first` on are scored."""

    ids: tuple[int, ...]
    first: int


def score(
    llama: Llama, texts: Iterable[str], *, progress: Callable[[int], object] | None = None
) -> list[Score]:
    """The score of each text; `Score.total` adds them up. Of several ranks all call it, with the same texts.

    Args:
        texts: any, also empty. A control piece written out in one is plain text.
        progress: called with the number of bytes that were scored since the last call.

    Raises:
        PromptError: something that is no text, or holds a lone surrogate.
        RequestError: max_seq_len leaves no room for a token after bos.
        NumericsError, RankError: as `Llama.text_completion`.
    """
    return list(scores(llama, text_list("texts", texts), progress=progress))


def scores(
    llama: Llama, texts: Iterable[str], *, progress: Callable[[int], object] | None = None
) -> Iterator[Score]:
    """As `score`, one after the other as they are known. Short texts share steps of the engine."""
    begun: deque[_Tally] = deque()
    for call in calls(_windows_of(llama, texts, begun), lambda item: len(item[1].ids)):
        found = prompt_scores(llama, [window.ids for _, window in call])
        for (tally, window), each in zip(call, found, strict=True):
            gained = tally.add(each[window.first - 1 :])
            if progress is not None:
                progress(gained)
        while begun and begun[0].is_complete:
            yield begun.popleft().score
    yield from (tally.score for tally in begun)  # empty texts, which have no window


def texts_of_first_rank(llama: Llama, texts: Sequence[str] | None) -> list[str]:
    """The first rank's texts, on all ranks, which call this together; the others give None.

    Raises:
        RankError: another rank is gone.
    """
    ranks = Ranks(llama.model.parallel, llama.model.device, messages=1)
    if texts is None:
        heard: list[str] = json.loads(ranks.hear())
        return heard
    ranks.tell(json.dumps(list(texts)).encode())
    return list(texts)


def windows(ids: Sequence[int], bos_id: int, max_seq_len: int) -> Iterator[Window]:
    """The windows in which a text's ids are scored, each of them once.

    Args:
        ids: of the text, without bos.

    Raises:
        RequestError: max_seq_len is below 2.
    """
    room = max_seq_len - 1  # after bos
    if room < 1:
        raise RequestError(
            f"max_seq_len is {max_seq_len}; a token is scored after bos, so build with at least 2"
        )
    before = min(max_seq_len // 2, room - 1)
    begin = scored = 0
    while scored < len(ids):
        end = min(begin + room, len(ids))
        yield Window((bos_id, *ids[begin:end]), 1 + scored - begin)
        begin, scored = end - before, end


def prompt_scores(llama: Llama, prompts: Sequence[Sequence[int]], top: int = 0) -> list[list[TokenScore]]:
    """Of each list of ids the scores of all but its first; one call of the engine.

    Args:
        top: alternatives that each score is to have.
    """
    call = Options(temperature=0.0, max_gen_len=0, logprobs=top or True, echo=True)
    made = [Prompt(tuple(ids), frozenset(), start_of_text=False) for ids in prompts]
    return [output.prompt_scores for output in llama.session.run(made, call)]


def calls(items: Iterable[_Item], tokens: Callable[[_Item], int]) -> Iterator[list[_Item]]:
    """The items in lists of about 65,536 tokens, which is enough to fill every step.

    Args:
        tokens: how many an item has.
    """
    call: list[_Item] = []
    size = 0
    for item in items:
        call.append(item)
        size += tokens(item)
        if size >= _CALL_TOKENS:
            yield call
            call, size = [], 0
    if call:
        yield call


class _Tally:
    """What is known of a text so far.

    Args:
        tokens, size: of the whole text; size in bytes.
    """

    def __init__(self, tokens: int, size: int) -> None:
        self._tokens, self._size = tokens, size
        self._nats: list[float] = []
        self._done = 0

    def add(self, found: Sequence[TokenScore]) -> int:
        """The scores of its next tokens -> the bytes that this is about."""
        before = self._size * self._done // self._tokens
        self._nats.append(-math.fsum(each.logprob for each in found))
        self._done += len(found)
        return self._size * self._done // self._tokens - before

    @property
    def is_complete(self) -> bool:
        return self._done == self._tokens

    @property
    def score(self) -> Score:
        return Score(math.fsum(self._nats), self._tokens, self._size)


def _windows_of(llama: Llama, texts: Iterable[str], begun: deque[_Tally]) -> Iterator[tuple[_Tally, Window]]:
    """The windows of all texts, each with the tally of its text, which is appended to `begun`."""
    bos_id, max_seq_len = llama.tokenizer.bos_id, llama.model.params.max_seq_len
    for row, text in enumerate(texts):
        with naming_prompt(row):
            ids = _encoded(llama.tokenizer, text)
        tally = _Tally(len(ids), len(text.encode()))
        begun.append(tally)
        yield from ((tally, window) for window in windows(ids, bos_id, max_seq_len))


def _encoded(tokenizer: Tokenizer, text: str) -> array[int]:
    """The ids of a text, without bos. Four bytes for each, where a list takes 36.

    Where no piece crosses the end of a line, a long text is encoded some lines at a time, which gives the same
    ids in a third of the time.
    """
    cuts = [len(text)]
    if len(text) > _PART and _lines_are_apart(tokenizer) and not _SURROGATE.search(text):
        cuts = list(_line_ends(text))
    ids = array("i")
    begin = 0
    for end in cuts:
        part = text[begin:end]
        ids.extend(
            tokenizer.encode_infilling(part) if begin else tokenizer.encode(part, bos=False, eos=False)
        )
        begin = end
    return ids


def _line_ends(text: str) -> Iterator[int]:
    """Where to cut: after line breaks, about `_PART` characters apart, and at the end."""
    end = 0
    while end < len(text):
        end = text.find("\n", end + _PART) + 1 or len(text)
        yield end


def _lines_are_apart(tokenizer: Tokenizer) -> bool:
    """Whether a line break is an id of its own, whatever stands beside it."""
    pieces: list[str] = tokenizer.sp_model.id_to_piece(list(range(tokenizer.n_words)))
    # A vocabulary that changes its text, such as a line break to a space, sets no such bound.
    return tokenizer.fewest_ids(1) > 0 and not any("\n" in piece for piece in pieces)
