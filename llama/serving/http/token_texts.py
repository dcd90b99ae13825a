"""Ids as text: names and bytes of single tokens, what each adds to its sample's text, prompts spelled out.

Of the vocabulary alone: `TokenNames` and `token_bytes`. Within a text: `TokenTexts`, where a character may be
spread over several byte tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...detokenizer import Detokenizer
from ...tokenizer import SPACE_SYMBOL, Tokenizer

__all__ = ["TokenNames", "TokenTexts", "spelled", "token_bytes"]


class TokenNames(dict[int, str]):
    r"""Ids -> names, one name for each id of a vocabulary, made when they are asked for.

    The name of a piece is its text. A control piece has its spelling (`</s>`), a byte that is not a character,
    or that has a piece too, `bytes:\xe4`, as in OpenAI's log-probabilities.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._bytes: dict[int, bytes] = {}

    def __missing__(self, token: int) -> str:
        name = self[token] = self._name(token)
        return name

    def bytes_of(self, token: int) -> bytes:
        """As `token_bytes`, remembered."""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = token_bytes(self._tokenizer, token)
        return found

    def _name(self, token: int) -> str:
        tokenizer = self._tokenizer
        text = tokenizer.token_bytes(token)
        if isinstance(text, bytes):
            char = text.decode("ascii", "replace")
            return char if char.isascii() and not _has_piece(tokenizer, char) else f"bytes:\\x{text[0]:02x}"
        if text is None or token == tokenizer.unk_id:
            return tokenizer.token_piece(token).replace(SPACE_SYMBOL, " ")
        return text


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """The UTF-8 bytes of a token in a text that has begun; none for a control id.

    Raises:
        TokenizerError: the id is outside the vocabulary.
    """
    text = tokenizer.token_bytes(token)
    return text if isinstance(text, bytes) else (text or "").encode()


class TokenTexts:
    """What each token of one text adds to it.

    Joined, the texts are the text of all ids. A token that completes no character adds nothing; the one that
    does adds the character.

    Args:
        tokenizer: the vocabulary.
        start_of_text: the ids begin a text, as `Request.start_of_text`: the space in front is dropped.
    """

    def __init__(self, tokenizer: Tokenizer, *, start_of_text: bool) -> None:
        self._detokenizer = Detokenizer(tokenizer, start_of_text=start_of_text)

    def push(self, tokens: Sequence[int], *, final: bool = False) -> list[str]:
        """The text of each of the next tokens.

        Args:
            final: no others follow, so the last of these also gets the bytes of an incomplete character, as
                one U+FFFD each. If there is no token, they are lost.

        Raises:
            TokenizerError: an id outside the vocabulary, or a push after the final one.
        """
        texts = [self._detokenizer.push(token) for token in tokens]
        if final:
            rest = self._detokenizer.finish()
            if texts:
                texts[-1] += rest
        return texts


def spelled(tokenizer: Tokenizer, tokens: Sequence[int], *, begins: bool = False) -> str:
    """Ids as one text, control ids as their pieces (`</s>`). Text after bos or eos begins without a dummy space;
    so does the first, if it `begins` a text."""
    parts: list[str] = []
    run: list[int] = []

    def flush() -> None:
        parts.append(tokenizer.decode(run) if begins else tokenizer.decode_infilling(run))
        run.clear()

    for token in tokens:
        if token not in tokenizer.control_ids:
            run.append(token)
            continue
        flush()
        parts.append(tokenizer.token_piece(token).replace(SPACE_SYMBOL, " "))
        begins = token in (tokenizer.bos_id, tokenizer.eos_id)
    flush()
    return "".join(parts)


def _has_piece(tokenizer: Tokenizer, char: str) -> bool:
    piece = SPACE_SYMBOL if char == " " else char
    found: int = tokenizer.sp_model.piece_to_id(piece)
    return bool(tokenizer.sp_model.id_to_piece(found) == piece)
