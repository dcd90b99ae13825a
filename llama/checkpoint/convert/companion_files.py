"""The config, tokenizer files and chat templates of a Hugging Face folder, to be copied in a conversion.

An untrusted folder may hold a link to any file of this machine, and a copy of that file would be published
with the new checkpoint. So links are followed only within the folder and, because the hub's cache consists of
links, into the blobs beside its snapshots. And a file is copied only if its content is what its name says.
"""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import CheckpointFormatError
from ..files import check_file, strict_object
from ..layouts.hugging_face import COMPANION_FILES

__all__ = ["companion_files"]

# A tokenizer.json of 32,016 pieces has 2 MB. Parsed, one byte of JSON can become 30 bytes of memory.
_MOST = 8 << 20


def companion_files(folder: Path) -> dict[str, bytes]:
    """The content of config.json, and of those `COMPANION_FILES` that the folder has, by name.

    Raises:
        CheckpointFormatError: a file is a link out of the folder, is not JSON or text, or is too large.
        CheckpointNotFoundError: a file is a dangling link.
    """
    names = ("config.json", *COMPANION_FILES)
    return {name: _content(folder / name) for name in names if os.path.lexists(folder / name)}


def _content(path: Path) -> bytes:
    size = check_file(path, f"fetch the {path.name} that came with the weights, or remove it")
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(root) for root in _roots(path.parent)):
        raise CheckpointFormatError(
            f"{path} is a link to {real}, outside of the folder, and would be copied into the new checkpoint: if you"
            " want that, put the file itself there; else remove the link"
        )
    if size > _MOST:
        raise CheckpointFormatError(f"{path} has {size:,} bytes, more than any {path.name}; fetch it again")
    content = real.read_bytes()
    try:
        if path.suffix == ".json":
            strict_object(content)
        else:
            content.decode()
    except ValueError as error:
        raise CheckpointFormatError(f"{path} is not usable: {error}; fetch it again, or remove it") from error
    return content


def _roots(folder: Path) -> list[Path]:
    """Folders that a file may be in: its own and, for a snapshot in the hub's cache, the cache's blobs."""
    real = Path(os.path.realpath(folder))
    # Also for a folder inside a snapshot. `blobs` is not resolved again: if it is itself a link, it leads
    # elsewhere.
    caches = [parent.parent for parent in real.parents if parent.name == "snapshots"]
    return [real, *(cache / "blobs" for cache in caches[:1])]
