"""Checkpoints: weights on disk, in Meta's or Hugging Face's layout, or as GGUF.

There is one way through. `open_checkpoint` maps the files and checks them; the `Checkpoint` it returns gives
any window of any tensor (`Checkpoint.parts`) under Meta's names and in Meta's row order; load, verify,
convert and info are written against that class alone.

    opening.py            folder -> Checkpoint; the table of layouts; the tokenizer that goes with it
    base.py               Checkpoint, the base class
    layouts/              one class for each layout: meta, hugging_face, gguf
    wrapped.py            a checkpoint around another one, which changes weights while they are read
    lora/, quantize.py    such changes: LoRA adapters are merged, plain matrices quantized
    weight_files/         one reader and writer for each file format: pth, safetensors, gguf
    memory.py             what each tensor will be in memory on a rank, and its bytes, before any is read
    load.py, verify.py, info.py                     Checkpoint -> one rank's weights, findings, a description
    convert/              Checkpoint -> a new folder, which appears complete or not at all
    files.py, huge_pages.py, progress.py            small files, memory pages, the progress bar

To add a folder layout, write a subclass of `Checkpoint` in layouts/ and list it in `opening.LAYOUTS`. To add
a format of weight file, write a function in weight_files/ that returns a `TensorFile`, and call it from the
layouts that use it.
"""

from .base import Checkpoint
from .layouts.gguf import GgufCheckpoint
from .layouts.hugging_face import HuggingFaceCheckpoint
from .layouts.meta import MetaCheckpoint
from .load import load_weights
from .opening import open_checkpoint, tokenizer_of

__all__ = [
    "Checkpoint",
    "GgufCheckpoint",
    "HuggingFaceCheckpoint",
    "MetaCheckpoint",
    "load_weights",
    "open_checkpoint",
    "tokenizer_of",
]
