"""Text files: read whole, and written in one piece or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from ..errors import LlamaError, PromptError
from ..printable import shown, tell

__all__ = ["FileChangedError", "TextFile", "decoded", "read_stdin", "write_atomically"]


class FileChangedError(LlamaError, RuntimeError):
    """A file that somebody else changed between our read and our write. It is left as it is."""


@dataclass(frozen=True)
class TextFile:
    """A file as it was read: its real path, its bytes, and its text without a byte order mark."""

    path: Path
    content: bytes
    text: str

    @classmethod
    def read(cls, path: Path) -> TextFile:
        """Read a file of UTF-8 text; symbolic links are followed.

        Raises:
            OSError: it cannot be read.
            PromptError: it is not UTF-8.
        """
        real = path.resolve()
        content = real.read_bytes()
        return cls(real, content, decoded(content, str(path)))

    def replace(self, text: str) -> None:
        """Replace the file's text, in one step.

        Raises:
            FileChangedError: the file is not as it was read.
            OSError: it cannot be written; it is then as before.
        """
        # `decoded` drops a byte order mark; it goes back in front.
        mark = b"\xef\xbb\xbf" if self.content.startswith(b"\xef\xbb\xbf") else b""
        write_atomically(self.path, mark + text.encode("utf-8"), expected=self.content)


def decoded(content: bytes, name: str, *, keep_mark: bool = False) -> str:
    """Bytes as text; a byte order mark is dropped, unless it is to be kept.

    Raises:
        PromptError: not UTF-8; the message gives the byte's place.
    """
    try:
        return content.decode("utf-8" if keep_mark else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise PromptError(
            f"{name} is not UTF-8: byte {content[error.start]:#04x} in line {line:,}; convert it, e.g. with iconv"
        ) from None


def read_stdin() -> str:
    """All of standard input, as UTF-8. Raises PromptError."""
    if sys.stdin is None or sys.stdin.closed:
        return ""
    if sys.stdin.isatty():
        tell("reading the text from the terminal; Ctrl-D at the start of a line ends it")
    return decoded(sys.stdin.buffer.read(), "standard input")


def write_atomically(path: Path, content: bytes, *, expected: bytes | None = None) -> None:
    """Write a file so that its name always holds the old content or the new one, whole.

    The new file is written beside it, forced to disk and renamed; it has the mode of the old one, or that of
    any new file.

    Args:
        expected: what the file must still hold.

    Raises:
        FileChangedError: it holds something else, or is gone.
        OSError: it cannot be written, or is no regular file (a device would be replaced); it is then as before.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    name = path.parent / f".{path.name[:100]}.{secrets.token_hex(8)}.tmp"
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            os.fsync(file.fileno())
        if expected is not None:
            _check_unchanged(path, expected)
        os.replace(name, path)
    except BaseException as error:
        # A write's own error does not say of which file.
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    _sync_folder(path.parent)


def _check_unchanged(path: Path, expected: bytes) -> None:
    try:
        same = path.read_bytes() == expected
    except FileNotFoundError:
        same = False
    if not same:
        raise FileChangedError(
            f"{shown(str(path))} was changed meanwhile; it is left as it is, run the command again"
        )


def _sync_folder(folder: Path) -> None:
    """Force the rename to disk; some file systems cannot, and the new name is then as durable as any."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
