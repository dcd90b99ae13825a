"""`codellama score`: how well a model predicts files."""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, LlamaError
from ..printable import reason, tell
from .arguments import add_loading, path
from .terminal import out

if TYPE_CHECKING:
    from ..evaluation.scoring import Score
    from ..terminal.running import Model

SUMMARY = "how well a model predicts files"
DESCRIPTION = """
    Print how well a model predicts files of UTF-8 text: bits per byte of the file, nats per token (whose exponential
    is the perplexity), for each file and for all of them together. - is standard input.

    A file is taken as it is, with its line ends and byte order mark. The model reads it after bos, which does not
    count; no eos is added. A file longer than --max-seq-len is read in windows that overlap by half.

      codellama score CodeLlama-7b/ src/*.py
      git show HEAD:setup.py | codellama score CodeLlama-7b/ -
    """

_STDIN = "-"
_HEAD = f"{'bits/byte':>9}  {'nats/token':>10}  {'tokens':>11}  {'bytes':>13}  file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=path, metavar="DIR", help="a folder in Meta's or Hugging Face's layout, or a GGUF file"
    )
    parser.add_argument("files", type=path, nargs="+", metavar="FILE", help="files of text; - for stdin")
    add_loading(parser, max_batch_size=8)


def run(options: argparse.Namespace) -> int:
    from ..terminal.running import Model, first_rank_of

    model = Model(
        options.folder,
        options.tokenizer,
        options.max_seq_len,
        options.max_batch_size,
        options.device,
        options.dtype,
        adapter=options.adapter,
        quantize=options.quantize,
        cache_dtype=options.cache_dtype,
    )
    texts: list[str] | None = None
    if first_rank_of(model):  # it reads and prints
        texts = _read(options.files)  # before minutes of loading
        if texts is None:
            return 1
    _score(model, list(map(str, options.files)), texts)
    return 0


def _read(files: Sequence[Path]) -> list[str] | None:
    """The text of each file; None, with a line for each that cannot be had, if there is one."""
    from ..terminal.files import decoded

    texts: list[str] = []
    for number, file in enumerate(files):
        try:
            if str(file) != _STDIN:
                content = file.read_bytes()
            elif file in files[:number]:
                raise ConfigError("- is there twice, but standard input can be read only once")
            else:
                content = b"" if sys.stdin is None else sys.stdin.buffer.read()
            name = "standard input" if str(file) == _STDIN else str(file)
            texts.append(decoded(content, name, keep_mark=True))
        except (OSError, LlamaError) as error:
            tell(f"error: {reason(error)}")
    return texts if len(texts) == len(files) else None


def _score(model: Model, names: Sequence[str], texts: list[str] | None) -> None:
    """Print a row for each text; on ranks that have none only take part."""
    from ..evaluation.scoring import Score, scores, texts_of_first_rank
    from ..terminal.progress import Progress

    with model.build() as llama:
        progress = None if texts is None else Progress(sum(len(text.encode()) for text in texts), 0)
        every = scores(
            llama, texts_of_first_rank(llama, texts), progress=None if progress is None else progress.advance
        )
        if progress is None:
            deque(every, maxlen=0)
            return
        found: list[Score] = []
        out(_HEAD)
        for name, each in zip(names, every, strict=True):
            progress.clear()
            out(_row(each, name))
            found.append(each)
        progress.clear()
        if len(found) > 1:
            out(_row(Score.total(found), f"all {len(found):,}"))


def _row(score: Score, name: str) -> str:
    bits, nats = (
        f"{value:.4f}" if score.tokens else "-" for value in (score.bits_per_byte, score.nats_per_token)
    )
    return f"{bits:>9}  {nats:>10}  {score.tokens:>11,}  {score.bytes:>13,}  {name}"
