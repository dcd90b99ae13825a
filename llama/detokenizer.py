"""Ids to text, one id at a time.

Turns a stream of ids into pieces of text that are safe to show: no character is split, no part of a stop
string gets out, and the pieces joined are the whole text. The cost per id is its own text times the number of
stop strings, however long the text has become. Knows nothing of stop ids, requests or time. Imports no torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from .errors import SamplingError, TokenizerError
from .printable import shown
from .tokenizer import Tokenizer

__all__ = ["Detokenizer", "Stops"]

REPLACEMENT = "\ufffd"


class Detokenizer:
    """Decodes ids as they come, and holds back text that is not certain yet.

    Laws, for any ids, with `text` the whole text (`Tokenizer.decode(ids)` with `start_of_text`, else
    `Tokenizer.decode_infilling(ids)`):
      * if `text` holds no stop string, all deltas and `finish()` joined are `text`;
      * otherwise they are `text` up to the match that starts first (of two that start together, the shorter),
        wherever tokens begin and end, and `stopped` is that string;
      * with `stop_after` both hold of the text behind the last character that one of the first so many ids is
        part of, so that all of these ids are kept.

    Args:
        tokenizer: the vocabulary.
        start_of_text: the ids begin a text, so that the dummy space in front of it is dropped; otherwise they
            continue one and their first space is kept.
        stop: strings that end the text and are not part of it; as `Stops` if several texts share them.
        stop_after: ids at the start whose text no stop string matches, not even in part.

    Raises:
        SamplingError: `stop` is not a sequence of non-empty strings.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        start_of_text: bool = False,
        stop: Sequence[str] | Stops = (),
        stop_after: int = 0,
    ) -> None:
        stops = stop if isinstance(stop, Stops) else Stops(stop)
        self._tokenizer, self._start_of_text, self._stops = tokenizer, start_of_text, stops
        self._drop_space = start_of_text and tokenizer.has_dummy_prefix
        self._bytes = b""  # the first bytes of a character, one byte per token
        self._matcher = _Matcher(stops) if stops.texts else None
        self._stop_after, self._pushed = stop_after, 0
        self._unmatched = 0  # characters before the text that stop strings are looked for in
        self._early = 0  # how many of _bytes belong to the first ids
        self._skip = 0  # characters at the start of the next text that have such bytes
        self._held = ""  # decoded, but may be the beginning of a stop string
        self._decoded = 0  # characters decoded, shown and held
        self._ends: deque[int] = deque()  # end of the text of each token that is not counted in _kept
        self._kept = 0
        self._stopped: str | None = None
        self._finished = False

    def fresh(self) -> Detokenizer:
        """A new one for another text of the same kind; they share the tables of the stop strings."""
        start, after = self._start_of_text, self._stop_after
        return Detokenizer(self._tokenizer, start_of_text=start, stop=self._stops, stop_after=after)

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text; None until one does."""
        return self._stopped

    @property
    def kept_tokens(self) -> int:
        """How many of the pushed ids have had all their text returned.

        Once `stopped` is set, or after `finish`, these are the ids of the result: those whose text ends at or
        before the cut. An id whose text the cut goes through is not counted, though its text before the cut
        is returned. Ids without text count with the text before them.
        """
        return self._kept

    @property
    def text_len(self) -> int:
        """Characters returned so far."""
        return self._decoded - len(self._held)

    def push(self, token_id: int) -> str:
        """The text that `token_id` makes safe to show, often empty. Always empty once `stopped` is set.

        Raises:
            TokenizerError: the id is outside the vocabulary, or `finish` was called before.
        """
        if self._finished:
            raise TokenizerError("push after finish: a Detokenizer decodes one text")
        if self._stopped is not None:
            return ""
        piece = self._tokenizer.token_bytes(token_id)
        self._pushed += 1
        if isinstance(piece, bytes):
            self._bytes += piece
            text = self._take_bytes(final=False)
            if self._pushed <= self._stop_after:
                self._early = len(self._bytes)
            return self._release(text, final=False)
        text = self._take_bytes(final=True) if self._bytes else ""
        if piece and self._drop_space and not self._decoded:
            # As SentencePiece: drop one space of the first piece with text, if no byte came before
            # (`_decoded` counts the characters that _take_bytes has just added).
            self._drop_space = False
            piece = piece.removeprefix(" ") if token_id != self._tokenizer.unk_id else piece
        piece = piece or ""
        self._decoded += len(piece)
        self._ends.append(self._decoded)
        return self._release(text + piece, final=False)

    def finish(self) -> str:
        """The text held back: one that began like a stop string, or one U+FFFD per byte of an incomplete
        character.

        A second call returns an empty string.
        """
        if self._finished or self._stopped is not None:
            self._finished = True
            return ""
        self._finished = True
        return self._release(self._take_bytes(final=True), final=True)

    def _take_bytes(self, final: bool) -> str:
        """The characters that the held bytes make up; `final` leaves no byte behind."""
        text = ""
        while self._bytes:
            size = _char_size(self._bytes)
            if size > len(self._bytes) and not final:
                break
            try:
                text_of_char, used = self._bytes[:size].decode("utf-8"), size
            except UnicodeDecodeError:
                text_of_char, used = REPLACEMENT, 1  # as SentencePiece: one per byte
            text += text_of_char
            self._bytes = self._bytes[used:]
            self._skip += self._early > 0
            self._early = max(0, self._early - used)
            self._decoded += 1
            self._ends.extend([self._decoded] * used)
        return text

    def _release(self, text: str, final: bool) -> str:
        """The part of held text and `text` that no stop string can still cut off."""
        if self._matcher is None or self._pushed <= self._stop_after:
            self._unmatched, self._skip = self._decoded, 0
            self._kept += len(self._ends)
            self._ends.clear()
            return text
        early, text = text[: self._skip], text[self._skip :]
        self._unmatched, self._skip = self._unmatched + self._skip, 0
        self._held += text
        start = self._decoded - len(self._held)
        safe = self._unmatched + self._matcher.feed(text, final)
        self._stopped = self._matcher.matched if self._matcher.decided else None
        released, self._held = self._held[: safe - start], self._held[safe - start :]
        if self._stopped is not None:
            self._decoded, self._held = safe, ""
        self._settle(safe)
        return early + released

    def _settle(self, position: int) -> None:
        while self._ends and self._ends[0] <= position:
            self._ends.popleft()
            self._kept += 1


class Stops:
    """Stop strings with their matching tables, made once for all texts that they may end.

    Raises:
        SamplingError: not a sequence of non-empty strings.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        if isinstance(texts, str) or not all(isinstance(s, str) for s in texts):
            raise SamplingError(f"stop must be a sequence of strings, got {shown(texts)}")
        if "" in texts:
            raise SamplingError("a stop string is empty; it would match everywhere")
        self.texts = tuple(dict.fromkeys(texts))
        self.borders = [_borders(s) for s in self.texts]


class _Matcher:
    """Finds the first of several strings in a text that comes in parts (Knuth, Morris and Pratt 1977).

    For each string it keeps how many of its first characters the text ends with: those must be held back.
    """

    def __init__(self, stops: Stops) -> None:
        self._stop, self._borders = stops.texts, stops.borders
        self._reached = [0] * len(self._stop)
        self._length = 0
        self._start = -1
        self.matched: str | None = None
        self.decided = False

    def feed(self, text: str, final: bool) -> int:
        """Read more text -> the position up to which it cannot be part of the first match.

        Once `decided` is set, that is where `matched` begins. A match stays undecided while one that began
        before it may still be completed; `final` says that no text follows.
        """
        for char in text:
            self._length += 1
            for index, stop in enumerate(self._stop):
                if self._advance(index, char):
                    self._found(self._length - len(stop), stop)
            if self.matched is not None and self._pending() >= self._start:
                break
        self.decided = self.matched is not None and (final or self._pending() >= self._start)
        if self.matched is not None and self.decided:
            return self._start
        return self._length if final else self._pending()

    def _advance(self, index: int, char: str) -> bool:
        stop, borders, reached = self._stop[index], self._borders[index], self._reached[index]
        if reached == len(stop):
            reached = borders[reached]
        while reached and stop[reached] != char:
            reached = borders[reached]
        self._reached[index] = reached + (stop[reached] == char)
        return self._reached[index] == len(stop)

    def _found(self, start: int, stop: str) -> None:
        # Of two that start together the shorter is found first, and stays.
        if self.matched is None or start < self._start:
            self._start, self.matched = start, stop

    def _pending(self) -> int:
        """Start of the longest partial match at the end of the text."""
        return self._length - max(self._reached)


def _borders(s: str) -> list[int]:
    """For each n <= len(s): the length of the longest proper prefix of s[:n] that is also its suffix."""
    borders, reached = [0, 0], 0
    for char in s[1:]:
        while reached and s[reached] != char:
            reached = borders[reached]
        reached += s[reached] == char
        borders.append(reached)
    return borders


def _char_size(data: bytes) -> int:
    """Bytes of the UTF-8 character at the start of `data`, by its first byte; 1 if there is none.

    Also 1 if a later byte rules the character out, so that broken bytes are not held back.
    """
    first = data[0]
    size = 2 if 0xC2 <= first < 0xE0 else 3 if 0xE0 <= first < 0xF0 else 4 if 0xF0 <= first < 0xF5 else 1
    return size if all(byte & 0xC0 == 0x80 for byte in data[1:size]) else 1
