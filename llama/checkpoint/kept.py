"""What a Hugging Face folder says of its model beside weights: read whole, to go along in a conversion.

A folder of strangers may hold a link to any file of this machine, and a copy of that file would go out with the new
checkpoint. So a link is followed within the folder and, as the hub's cache is made of links, within the blobs
beside the snapshots; and a file goes along only if it is what its name says.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CheckpointFormatError
from .files import check_file, strict_object
from .hugging_face import KEPT_FILES

__all__ = ["kept_files"]

# tokenizer.json of 32,016 pieces takes 2 MB. Parsed, a byte of JSON can become 30 bytes of memory.
_MOST = 8 << 20


def kept_files(folder: Path) -> dict[str, bytes]:
    """The content of config.json and of those of `KEPT_FILES` that a folder holds, by name.

    Raises:
        CheckpointFormatError: one is a link out of the folder, is no JSON or text, or is too large.
        CheckpointNotFoundError: one is a link that leads nowhere.
    """
    names = ("config.json", *KEPT_FILES)
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
    """Where files of a folder may lie: in it, or, if it is a snapshot in the hub's cache, in the blobs there."""
    real = Path(os.path.realpath(folder))
    # Or in a folder of a snapshot. Not resolved once more: blobs that are themselves a link lead elsewhere.
    caches = [parent.parent for parent in real.parents if parent.name == "snapshots"]
    return [real, *(cache / "blobs" for cache in caches[:1])]
