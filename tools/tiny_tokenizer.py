"""CodeLlama-tiny's tokenizer: how it is trained, and the family's token formats.

`sp` encodes with SentencePiece's dummy prefix space, `sp0` without it.
"""

from __future__ import annotations

from collections.abc import Iterable

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_pb

INFILLING_PIECES = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")


class TinyTokenizer:
    """SentencePiece with and without the dummy prefix, and the ids of the control pieces."""

    def __init__(self, model_proto: bytes) -> None:
        proto = sentencepiece_pb.ModelProto()  # type: ignore[attr-defined]  # made when imported
        proto.ParseFromString(model_proto)
        proto.normalizer_spec.add_dummy_prefix = False
        self.proto = model_proto
        self._with_prefix = sentencepiece.SentencePieceProcessor(model_proto=model_proto)
        self._without = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        self.vocab_size = self._with_prefix.vocab_size()
        self.bos, self.eos = self._with_prefix.bos_id(), self._with_prefix.eos_id()
        self.line_break = self._with_prefix.piece_to_id("<0x0A>")
        pieces = ((i, self._with_prefix.id_to_piece(i)) for i in range(self.vocab_size))
        self.blank = frozenset({self.line_break, *(i for i, piece in pieces if not piece.strip("▁"))})
        self.pre, self.suf, self.mid, self.eot = map(self._with_prefix.piece_to_id, INFILLING_PIECES)

    def sp(self, text: str) -> list[int]:
        ids: list[int] = self._with_prefix.encode(text)
        return ids

    def sp_all(self, texts: list[str]) -> list[list[int]]:
        """`sp` of many texts, on all cores."""
        ids: list[list[int]] = self._with_prefix.encode(texts, num_threads=-1)
        return ids

    def sp0(self, text: str) -> list[int]:
        ids: list[int] = self._without.encode(text)
        return ids

    def decode(self, ids: list[int]) -> str:
        return str(self._with_prefix.decode(ids))

    def decode_bare(self, ids: list[int]) -> str:
        """Decode a continuation, without removing a leading space."""
        return str(self._without.decode(ids))

    def document(self, ids: list[int]) -> list[int]:
        """The ids of a whole text between bos and eos."""
        return [self.bos, *ids, self.eos]

    def psm(self, prefix: str, suffix: str) -> list[int]:
        return [self.bos, self.pre, *self.sp(prefix), self.suf, *self.sp0(suffix), self.mid]

    def spm(self, prefix: str, suffix: str) -> list[int]:
        return [self.bos, self.pre, self.suf, *self.sp0(suffix), self.mid, *self.sp(prefix)]


def train_tokenizer(texts: Iterable[str], vocab_size: int, threads: int = 2) -> bytes:
    """A BPE model with the family's settings and the four infilling pieces at its end, serialised."""
    lines = (line for text in texts for line in text.split("\n") if line.strip())
    buffer = _ByteSink()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=buffer,
        model_type="bpe",
        vocab_size=vocab_size - len(INFILLING_PIECES),
        character_coverage=0.9995,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        # These lines come from the middle of a file: with a prefix space, indents of 5 and 9 would be
        # learned.
        add_dummy_prefix=False,
        pad_id=-1,
        num_threads=threads,
        minloglevel=2,
    )
    proto = sentencepiece_pb.ModelProto()  # type: ignore[attr-defined]  # made when imported
    proto.ParseFromString(buffer.data)
    proto.normalizer_spec.add_dummy_prefix = True
    proto.trainer_spec.vocab_size = vocab_size
    for piece in INFILLING_PIECES:
        # Ordinary pieces with the next lower scores, as in the family, so text can encode to them there too.
        proto.pieces.add(piece=piece, score=proto.pieces[-1].score - 1, type=proto.SentencePiece.NORMAL)
    return bytes(proto.SerializeToString())


class _ByteSink:
    """A file with the one method that SentencePiece's trainer calls."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data
