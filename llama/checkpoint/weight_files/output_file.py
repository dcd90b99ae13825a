"""A new file, written in order, with checksums taken on the way; and the bytes of a tensor."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

__all__ = ["OutputFile", "create", "raw_bytes"]

_CHUNK = 8 << 20


def raw_bytes(x: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied."""
    flat: Any = x.view(torch.uint8).reshape(-1).numpy()
    return memoryview(flat)


class OutputFile:
    """A new file that is written in order. Its checksums are computed while it is written, in another thread.

    It is created exclusively: an existing file is an error, and nothing is written through a link.

    Attributes:
        md5: hex digits of what was given to `write`, if `md5` was asked for.
        written: bytes so far.
    """

    def __init__(self, path: Path, md5: bool = False) -> None:
        self.path = path
        self.written = 0
        self._file = path.open("xb")
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 else None
        self._crc = 0
        self._hasher = ThreadPoolExecutor(1)

    @property
    def md5(self) -> str | None:
        return None if self._md5 is None else self._md5.hexdigest()

    def write(self, content: bytes | memoryview) -> int:
        """Append. The caller may overwrite `content` afterwards."""
        hashed = self._hasher.submit(self._md5.update, content) if self._md5 is not None else None
        try:
            self._crc = zlib.crc32(content, self._crc)
            self._file.write(content)
        finally:
            if hashed is not None:
                hashed.result()
        self.written += len(content)
        return len(content)

    def flush(self) -> None:
        """Called by zipfile."""
        self._file.flush()

    def close(self) -> None:
        """Close the file. Closing twice is fine."""
        self._hasher.shutdown()
        self._file.close()

    def read_back(self) -> Iterator[int]:
        """Read the closed file, yielding the size of each chunk, and compare it with what was written.

        Raises:
            OSError: the file has other content.
        """
        crc, size = 0, 0
        with self.path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                crc = zlib.crc32(chunk, crc)
                size += len(chunk)
                yield len(chunk)
        if (crc, size) != (self._crc, self.written):
            raise OSError(
                f"{self.path.name} does not read back as it was written ({self.written:,} bytes, read {size:,});"
                " check the disk"
            )


def create(path: Path, content: bytes) -> str:
    """Write a new small file and read it back -> its md5 in hex digits.

    Raises:
        OSError: the file exists, cannot be written, or reads back as something else.
    """
    output = OutputFile(path, md5=True)
    try:
        output.write(content)
    finally:
        output.close()
    for _ in output.read_back():
        pass
    assert output.md5 is not None
    return output.md5
