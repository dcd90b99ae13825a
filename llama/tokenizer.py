"""SentencePiece ids: text in, ids out, and back.

Knows the vocabulary, its control pieces and the two ways a text can begin (with SentencePiece's dummy space
or without it). Knows nothing of prompt formats (`prompts.py`) or of streams (`detokenizer.py`). Imports no
torch.

Two rules hold for every text and every vocabulary:
  * a user's text never becomes a control id, unless the caller asks for it with `allow_control`;
  * control ids never appear in decoded text.

The pieces of a vocabulary decide what it supports, never the name of a file or model.
"""

from __future__ import annotations

import operator
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from .errors import PromptError, TokenizerError
from .printable import reason, shown

__all__ = ["SPACE_SYMBOL", "Tokenizer"]

# SentencePiece writes a space inside a piece as this character (U+2581).
SPACE_SYMBOL = "\u2581"

# Survives encoding and decoding only if the vocabulary does not normalize text and lacks no character:
# spaces, characters that Unicode's normal forms change, and one that no vocabulary has a piece for.
_PROBE = "  x  \ufb01 e\u0301 \u2460\U0010ffff\U0010ffff  "

# Serialized protobuf: field 3 of ModelProto (normalizer_spec), 2 bytes long, with its field 3
# (add_dummy_prefix) = false. A message that occurs twice is merged field by field, so that these four bytes
# at the end of a model switch off the dummy prefix and change nothing else, without a protobuf package.
# Source: sentencepiece_model.proto, and protobuf's encoding of embedded messages.
_WITHOUT_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


# Largest tokenizer file. One of 32,000 pieces has half a megabyte; SentencePiece takes up to 30 times a
# file's size.
_MAX_FILE_BYTES = 4 << 20
# Longest piece, in characters. SentencePiece trains with 16; a conversion tries every split of a piece.
_MAX_PIECE_LENGTH = 256


class Tokenizer:
    """A SentencePiece model with Code Llama's control pieces, where it has them.

    Attributes:
        n_words: number of ids; ids are 0 <= id < n_words.
        bos_id, eos_id: begin and end of a sequence.
        unk_id: the id that stands for text outside the vocabulary; it decodes to ` ⁇ `.
        pad_id: the id that marks "no token", -1 in the Llama vocabularies. Never an embedding's index.
        prefix_id, middle_id, suffix_id, eot_id: infilling ids, None where the piece is absent.
        step_id: end of a message in the 70B chat format, None where the piece is absent.
        control_ids: every id that is not text: those above (not unk) and SentencePiece's control pieces.
        supports_infilling: the vocabulary has all four infilling pieces.
        sp_model: the SentencePiece processor, as in the reference.
        model_bytes: the SentencePiece model, as a tokenizer.model holds it.
        model_path: where that comes from: a tokenizer.model, or weights with the tokenizer in them.
    """

    def __init__(self, model_path: str | os.PathLike[str]) -> None:
        """Read the SentencePiece model in `model_path` (a file).

        Raises:
            TokenizerError: the file does not exist, is not a SentencePiece model, has no bos, eos or unk, or
                has a piece that is not text.
        """
        self._load(_read_model(Path(model_path)), os.fspath(model_path))

    @classmethod
    def from_bytes(cls, model: bytes, name: str) -> Tokenizer:
        """The tokenizer of a SentencePiece model in memory.

        Args:
            model: the content of a tokenizer.model.
            name: for messages, the file that it comes from.

        Raises:
            TokenizerError: as the constructor.
        """
        if len(model) > _MAX_FILE_BYTES:
            raise TokenizerError(
                f"{name}: its tokenizer takes {len(model):,} bytes, and at most {_MAX_FILE_BYTES:,} are accepted"
            )
        found = cls.__new__(cls)
        found._load(model, name)
        return found

    def _load(self, proto: bytes, name: str) -> None:
        self.model_bytes, self.model_path = proto, name
        self.sp_model = _processor(proto, self.model_path)
        self._sp_plain = _processor(proto + _WITHOUT_DUMMY_PREFIX, self.model_path)

        self.n_words: int = self.sp_model.vocab_size()
        self.bos_id: int = self.sp_model.bos_id()
        self.eos_id: int = self.sp_model.eos_id()
        self.pad_id: int = self.sp_model.pad_id()
        self.unk_id: int = self.sp_model.unk_id()
        for name in ("bos", "eos", "unk"):
            if getattr(self, f"{name}_id") < 0:
                raise TokenizerError(
                    f"{self.model_path}: the vocabulary has no {name} piece, so no prompt can be built with it;"
                    " is it a Llama tokenizer.model?"
                )
        self._check_text()
        self.prefix_id = self._piece_id("▁<PRE>")
        self.suffix_id = self._piece_id("▁<SUF>")
        self.middle_id = self._piece_id("▁<MID>")
        self.eot_id = self._piece_id("▁<EOT>")
        self.step_id = self._piece_id("<step>")

        spelled = [self.prefix_id, self.suffix_id, self.middle_id, self.eot_id, self.step_id]
        ordinary = [i for i in spelled if i is not None and not self.sp_model.is_control(i)]
        self.control_ids = frozenset(ordinary) | {
            i for i, control in enumerate(self.sp_model.is_control(list(range(self.n_words)))) if control
        }
        self.supports_infilling = None not in spelled[:4]
        # Whether decoding drops a space that encoding put in front of the text.
        self.has_dummy_prefix: bool = self.sp_model.decode(self._sp_plain.encode(" x")) != " x"
        self._as_text = {i: self._spell(i) for i in ordinary}
        # What `token_bytes` has found: each id comes again and again.
        self._texts: dict[int, bytes | str | None] = {}
        # Characters of the longest piece; None if a piece, or the normalizer, may stand for any number of
        # characters.
        faithful = self.sp_model.decode(self.sp_model.encode(_PROBE)) == _PROBE
        self._longest: int | None = None
        if faithful:
            self._longest = max(map(len, self.sp_model.id_to_piece(list(range(self.n_words)))))

    def encode(self, s: str, bos: bool, eos: bool, *, allow_control: bool = False) -> list[int]:
        """Ids of `s`, with SentencePiece's dummy space in front of it.

        Args:
            s: any text; it may be empty and may hold NUL characters.
            bos, eos: put the bos id in front, the eos id at the end.
            allow_control: let control pieces written out in `s` (` <PRE>`) become control ids, as the
                reference does; meant for prompts written by hand, not for other people's text.

        Returns: ids. Without `allow_control` those of `s` hold no control id, and `decode` gives `s` back,
        except for U+2581, which SentencePiece reads as a space. They are SentencePiece's own unless those hold
        a control id.

        Raises:
            PromptError: `s` is not a str, or holds a lone surrogate.
        """
        ids = self._encode(self.sp_model, s, allow_control)
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def fewest_ids(self, characters: int) -> int:
        """The fewest ids that a text of so many characters can have; 0 if the vocabulary sets no bound."""
        return 0 if self._longest is None else -(-characters // self._longest)

    def encode_infilling(self, s: str) -> list[int]:
        """Ids of `s` without the implicit leading space: for text that follows other text.

        The reference's `encode("☺" + s)[2:]`, without needing a piece `☺`. Never holds a control id.

        Raises:
            PromptError: `s` is not a str, or holds a lone surrogate.
        """
        return self._encode(self._sp_plain, s, False)

    def decode(self, t: Iterable[int]) -> str:
        """Text of the ids `t`, without the dummy space in front. Control ids and pad_id give no text.

        Bytes that are not UTF-8 become one U+FFFD each.

        Raises:
            TokenizerError: an id outside the vocabulary, or not an integer.
        """
        text: str = self.sp_model.decode(self._text_ids(t))
        return text

    def decode_infilling(self, t: Iterable[int]) -> str:
        """Text of the ids `t` as it continues other text: a space in front of it is kept.

        Raises:
            TokenizerError: an id outside the vocabulary, or not an integer.
        """
        text: str = self._sp_plain.decode(self._text_ids(t))
        return text

    def token_piece(self, t: int) -> str:
        """The piece of id `t` as the vocabulary spells it (`▁def`, `<0x0A>`).

        Raises:
            TokenizerError: `t` is outside the vocabulary.
        """
        piece: str = self.sp_model.id_to_piece(self.check_id(t))
        return piece

    def token_bytes(self, t: int) -> bytes | str | None:
        """What id `t` adds to a text that has begun: a str, one raw byte as bytes, or None for no text.

        Control ids and pad_id have no text. Used to decode incrementally.

        Raises:
            TokenizerError: `t` is outside the vocabulary.
        """
        t = _index(t)
        if t not in self._texts:
            self._texts[t] = self._text_of(t)
        return self._texts[t]

    def _text_of(self, t: int) -> bytes | str | None:
        if t == self.pad_id or t in self.control_ids:
            return None
        piece = self.token_piece(t)
        if self.sp_model.is_byte(t):
            return bytes([int(piece[3:5], 16)])  # "<0x0A>"
        if t == self.unk_id:
            surface: str = self._sp_plain.decode([t])
            return surface
        return piece.replace(SPACE_SYMBOL, " ")

    def check_id(self, t: int) -> int:
        """`t` as an int inside the vocabulary. A negative pad_id is outside.

        Raises:
            TokenizerError: it is not an integer, or not inside.
        """
        token_id = _index(t)
        if not 0 <= token_id < self.n_words:
            raise TokenizerError(
                f"token id {token_id} is outside the vocabulary: 0 <= id < {self.n_words}"
                f" (pad_id is {self.pad_id})"
            )
        return token_id

    def _check_text(self) -> None:
        """Check that every piece, and the text of unk, is UTF-8: then all decoded text is."""
        try:
            texts = [
                *self.sp_model.id_to_piece(list(range(self.n_words))),
                self._sp_plain.decode([self.unk_id]),
            ]
        except UnicodeDecodeError as error:
            raise TokenizerError(
                f"{self.model_path}: a piece of the vocabulary is not UTF-8 ({shown(error.object)}); download the"
                " file again"
            ) from error
        longest = max(texts, key=len)
        if len(longest) > _MAX_PIECE_LENGTH:
            raise TokenizerError(
                f"{self.model_path}: a piece of the vocabulary has {len(longest):,} characters; at most"
                f" {_MAX_PIECE_LENGTH} are accepted ({shown(longest)}); download the file again"
            )

    def _piece_id(self, piece: str) -> int | None:
        # piece_to_id returns unk for an absent piece, so check the piece of the id.
        token_id: int = self.sp_model.piece_to_id(piece)
        return token_id if self.sp_model.id_to_piece(token_id) == piece else None

    def _encode(self, processor: SentencePieceProcessor, s: str, allow_control: bool) -> list[int]:
        if not isinstance(s, str):
            raise PromptError(f"text must be a str, got {type(s).__name__}")
        try:
            s.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the text holds the lone surrogate U+{ord(s[error.start]):04X} at position {error.start},"
                " which UTF-8 cannot express; was it decoded with errors='surrogateescape'?"
            ) from None
        ids: list[int] = processor.encode(s)
        if allow_control or self.control_ids.isdisjoint(ids):
            return ids
        # Decoding concatenates, so an id can be replaced by others that spell the same text.
        return [t for token_id in ids for t in self._as_text.get(token_id, (token_id,))]

    def _text_ids(self, t: Iterable[int]) -> list[int]:
        # A control id becomes bos instead of being left out: like any piece it ends a run of byte pieces, so
        # that bytes before and after it are never joined into one character.
        if isinstance(t, (str, bytes)):
            raise TokenizerError(f"decode takes token ids, got {type(t).__name__}")
        ids = []
        for token_id in map(_index, t):
            if token_id == self.pad_id or token_id in self.control_ids:
                ids.append(self.bos_id)
            else:
                ids.append(self.check_id(token_id))
        return ids

    def _spell(self, control_id: int) -> tuple[int, ...]:
        """Ids without a control id that decode to the text of a control piece.

        The piece is split in two and its halves encoded separately, so that they cannot merge; preferably
        after `<`, since that is how a vocabulary without the piece spells it.
        """
        text: str = self.sp_model.id_to_piece(control_id).replace(SPACE_SYMBOL, " ")
        bracket = text.find("<") + 1
        for cut in sorted(range(1, len(text)), key=lambda at: at != bracket):
            ids: list[int] = self._sp_plain.encode(text[:cut]) + self._sp_plain.encode(text[cut:])
            if self.control_ids.isdisjoint(ids) and self._sp_plain.decode(ids) == text:
                return tuple(ids)
        raise TokenizerError(
            f"{self.model_path}: the vocabulary cannot spell its control piece {text!r} with other pieces,"
            " so a text that holds it could not be told from the control id"
        )


def _index(t: object) -> int:
    # Any integer type, also a numpy or torch scalar; 1.0 is not an id, though it equals 1.
    try:
        return operator.index(t)  # type: ignore[arg-type]
    except TypeError:
        raise TokenizerError(f"a token id must be an integer, got {type(t).__name__}") from None


def _read_model(path: Path) -> bytes:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for its writer
            raise TokenizerError(f"{path}: the tokenizer file cannot be read: it is a folder, pipe or device")
        if found.st_size > _MAX_FILE_BYTES:
            raise TokenizerError(
                f"{path}: a tokenizer file has at most {_MAX_FILE_BYTES:,} bytes, this one {found.st_size:,}; is it"
                " the weights, or a malicious file?"
            )
        with path.open("rb") as file:
            proto = file.read(found.st_size)
    except FileNotFoundError:
        raise TokenizerError(
            f"{path}: there is no tokenizer file here; a Code Llama checkpoint comes with tokenizer.model"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        if isinstance(error, TokenizerError):
            raise
        why = getattr(error, "strerror", None) or reason(error)
        raise TokenizerError(f"{path}: the tokenizer file cannot be read: {why}") from error
    if not proto:
        raise TokenizerError(f"{path}: the tokenizer file is empty; download it again")
    return proto


def _processor(proto: bytes, path: str) -> SentencePieceProcessor:
    processor = SentencePieceProcessor()
    try:
        loaded = processor.LoadFromSerializedProto(proto)
    except (RuntimeError, OSError, ValueError) as error:
        raise TokenizerError(
            f"{path}: not a SentencePiece model ({len(proto)} bytes, begins with {proto[:16]!r}); an error"
            " page saved as a file, a Git LFS pointer and a broken download look like this"
        ) from error
    assert loaded
    return processor
