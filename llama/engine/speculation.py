"""Drafts without a draft model: what followed the last tokens when they occurred before.

Saxena 2023 (prompt lookup), Yang et al. 2023 (inference with reference). A draft comes from the
sequence's own tokens, or from a prediction that the caller gave, and is verified in one forward: each
position is decided as it would be without a draft, with the random number of that position, and the
draft counts up to the first position decided otherwise. For a draft that is certain, as these are, this
is rejection sampling (Leviathan et al. 2023): it is accepted with the probability the model gives it,
and what replaces it has the remaining distribution. The tokens, and not only their distribution, are
those of a run without drafts, so no draft, however long, can change a result. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["MAX_DRAFT", "Drafter", "Lookup"]

# Most tokens of a draft.
MAX_DRAFT = 16
# An earlier place counts only if this many tokens before it agree.
_GRAM = 3
# A new attempt waits until it can try this many: a single token hardly pays even if it is right.
_FEWEST = 2
# The last few such places are compared, by at most this many tokens before them.
_PLACES = 8
_BACK = 24
# Tokens of a prompt or prediction that one step indexes, in under a millisecond, the last ones first.
_PIECE = 8192
# Bits of each id in the number that stands for three. Larger ids only find places that turn out not to agree.
_BITS = 21

# Costs of a draft, in units of a step that decodes one token: a step over several rows cannot use the kernels
# for one row, and each row takes time. Measured with bfloat16 on a CPU, 110M, at positions 200 to 1,500: up
# to 0.3 for the draft, and 0.08 to 0.13 for each row.
_CHECK = 0.25
_ROW = 0.12
# What every step earns towards new attempts: the share of speed that drafting may cost if it never pays.
_EARNED = 0.03
_START = 1.5
_SAVED = 4.0


class Lookup:
    """Where any three ids occur in a text that does not change; the samples of a request share it.

    Sorted numbers, 16 bytes for each token, made piece by piece from the end, because the last places are
    wanted.

    Args:
        ids: the text.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids
        self._pieces: list[tuple[np.ndarray, np.ndarray]] = []  # sorted numbers, and the end of each place
        self._left = len(ids)  # the next piece ends before this

    def grow(self) -> None:
        """Index one more piece, if there is one left."""
        stop = self._left
        start = max(_GRAM, stop - _PIECE)
        if start >= stop:
            return
        ids = np.array(self.ids[start - _GRAM : stop], dtype=np.int64)
        numbers = _number(ids[:-3], ids[1:-2], ids[2:-1])
        order = np.argsort(numbers, kind="stable")
        self._pieces.append((numbers[order], order + start))
        self._left = start

    def places(self, last: Sequence[int]) -> list[int]:
        """The ends of the last few places where these three ids occur and something follows, in order."""
        if len(last) < _GRAM:
            return []
        found: list[int] = []
        number = _number(*last)
        for numbers, ends in self._pieces:
            begin, end = np.searchsorted(numbers, number), np.searchsorted(numbers, number, side="right")
            found = ends[max(begin, end - (_PLACES - len(found))) : end].tolist() + found
            if len(found) == _PLACES:
                break
        return found


class Drafter:
    """Drafts for one sequence, as long as they pay.

    A balance limits what may be lost: a draft lowers it by its cost, an accepted token raises it by the step
    it saved, and each step earns a little. So drafting stops when it does not pay, is tried again now and
    then, and never costs more than 3 % of the steps and its first credit.

    Args:
        tokens: the sequence's own list: prompt and output, growing.
        prompt: length of the prompt.
        prediction: ids that the output may repeat.
        given: the index of the prompt, if samples share it.
    """

    def __init__(
        self,
        tokens: list[int],
        prompt: int,
        prediction: Sequence[int] | Lookup = (),
        given: Lookup | None = None,
    ) -> None:
        self._tokens, self._prompt = tokens, prompt
        self._given = Lookup(tokens[:prompt]) if given is None else given
        self._predicted = prediction if isinstance(prediction, Lookup) else Lookup(prediction)
        self._prediction = self._predicted.ids
        # Places in its own output.
        self._places: dict[tuple[int, ...], list[int]] = {}
        self._indexed = max(_GRAM, prompt) - 1
        self._balance = _START
        self._length = MAX_DRAFT if self._prediction else 4

    def fork(self, tokens: list[int]) -> Drafter:
        """A drafter for another sample of the same prompt, with its own tokens; they share the indexes."""
        return Drafter(tokens, self._prompt, self._predicted, self._given)

    def propose(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next, perhaps none."""
        self._balance = min(_SAVED, self._balance + _EARNED)
        affordable = int((self._balance - _CHECK) / _ROW)
        self._index()
        if most < 1 or affordable < min(_FEWEST, most):
            return []
        count = min(most, self._length, affordable)
        end = self._in_prediction()
        if end is not None:
            return list(self._prediction[end : end + count])
        last = self._last()
        ends = self._places.get(last, [])
        if len(ends) < _PLACES:
            ends = (self._given.places(last) + ends)[-_PLACES:]
        end = _longest(self._tokens, self._tokens, ends)
        return [] if end is None else self._copied(end, count)

    def judge(self, drafted: int, accepted: int) -> None:
        """Learn how many tokens of the last draft were right."""
        if drafted:
            cost = _CHECK + _ROW * drafted
            self._balance = min(_SAVED, self._balance + accepted - cost)
            self._length = min(MAX_DRAFT, 2 * self._length) if accepted == drafted else max(2, accepted)

    def _last(self) -> tuple[int, ...]:
        return tuple(self._tokens[-_GRAM:])

    def _index(self) -> None:
        """Index new tokens, up to the last but one: the last three would match only themselves."""
        self._given.grow()
        self._predicted.grow()
        tokens, places = self._tokens, self._places
        for end in range(self._indexed + 1, len(tokens)):
            found = places.setdefault((tokens[end - 3], tokens[end - 2], tokens[end - 1]), [])
            found.append(end)
            if len(found) > _PLACES:
                del found[0]
        self._indexed = max(self._indexed, len(tokens) - 1)

    def _in_prediction(self) -> int | None:
        if not self._prediction:
            return None
        done = len(self._tokens) - self._prompt
        if done < _GRAM and self._tokens[self._prompt :] == self._prediction[:done]:
            return done if done < len(self._prediction) else None
        return _longest(self._tokens, self._prediction, self._predicted.places(self._last()))

    def _copied(self, start: int, count: int) -> list[int]:
        """The tokens from `start` on. Past the last token the copy continues with itself, as in a loop."""
        tokens, draft = self._tokens, self._tokens[start : start + count]
        while len(draft) < count:
            draft.append(draft[start + len(draft) - len(tokens)])
        return draft


def _number(a: Any, b: Any, c: Any) -> Any:
    """Three ids as one integer, or three arrays of ids as one array. Longer ids are cut to _BITS bits."""
    return (a << 2 * _BITS ^ b << _BITS ^ c) & (1 << 3 * _BITS) - 1


def _longest(tokens: Sequence[int], text: Sequence[int], ends: Sequence[int]) -> int | None:
    """The end in `text` before which the longest run of the last tokens occurs; the latest of equals."""
    best, most = None, 0
    for end in reversed(ends):
        same = 0
        while same < min(_BACK, end, len(tokens)) and text[end - 1 - same] == tokens[-1 - same]:
            same += 1
        if same > most:
            best, most = end, same
    return best
