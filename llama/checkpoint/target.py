"""A folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from pathlib import Path
from types import TracebackType

from ..errors import CheckpointWriteError
from .files import some

__all__ = ["Target"]

GB = 10**9
# Room for the files beside the weights, and for the file system's own.
_SPARE = 32 << 20
_LOCK = ".lock"
# What a checkpoint folder holds. --force removes nothing else.
_OWN = re.compile(
    r"(consolidated|model|pytorch_model)\b.*\.(pth|safetensors|bin|json)|params\.json|checklist\.chk|config\.json"
    r"|generation_config\.json|tokenizer.*\.(model|json)|special_tokens_map\.json|added_tokens\.json"
    r"|chat_template\.(json|jinja)|(README|LICENSE|MODEL_CARD|USE_POLICY)(\.(md|txt))?|\.gitattributes|\.DS_Store"
    rf"|{re.escape(_LOCK)}"
)


class Target:
    """A folder under way: written beside its final place, renamed when `publish` says so.

    The folder beside it is `.NAME.unfinished`. One that a killed run left is removed by the next run; one
    that another run is writing is left alone (that run holds its lock).

    Args:
        final: the folder to make.
        nbytes: what will be written.
        force: replace `final` if it is a checkpoint folder.
        source: a folder that must not be replaced.

    Raises (on entering):
        CheckpointWriteError: `final` exists, its parent cannot be written, or the disk has too little room.
    """

    def __init__(self, final: Path, nbytes: int, *, force: bool, source: Path) -> None:
        # As the shell reads it: through links, but a link at the end is itself the target, and is refused.
        self.final = (
            Path(os.path.realpath(final.parent)) / final.name if final.name else Path(os.path.realpath(final))
        )
        self.folder = self.final.parent / f".{self.final.name}.unfinished"
        self._nbytes, self._force, self._source = nbytes, force, source
        self._lock: int | None = None
        self._made: list[Path] = []  # parents that were not there, the innermost first
        self._old = self.final.parent / f".{self.final.name}.replaced"

    def __enter__(self) -> Target:
        try:
            self._check_final()
            blocked = next((path for path in self.final.parents if path.exists() and not path.is_dir()), None)
            if blocked is not None:
                raise CheckpointWriteError(f"{blocked} is a file, not a folder to put {self.final.name} into")
            self._made = [path for path in self.final.parents if not path.exists()]
            self.final.parent.mkdir(parents=True, exist_ok=True)
            self._claim()
            if self._old.exists() and not self.final.exists():
                self._old.rename(self.final)  # a run was killed between its two renames
                self._check_final()
            free = shutil.disk_usage(self.folder).free
            if free < self._nbytes + _SPARE:
                raise CheckpointWriteError(
                    f"{self.final} needs {(self._nbytes + _SPARE) / GB:.2f} GB, but its disk has {free / GB:.2f} GB"
                    " free; free some, or choose another place"
                )
        except BaseException as error:
            self._abandon()
            if isinstance(error, OSError):
                raise self._explained(error) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._abandon()
        if isinstance(error, OSError):
            raise self._explained(error) from error

    def publish(self) -> None:
        """Give the folder its final name."""
        assert self._lock is not None
        self._check_final()
        if self.final.exists():
            _to_disk(self.folder)  # what it replaces is removed below
            shutil.rmtree(self._old, ignore_errors=True)
            self.final.rename(self._old)
        try:
            self.folder.rename(self.final)
        except OSError:
            if self._old.exists():
                self._old.rename(self.final)
            raise
        # From here on a folder of that name is another run's. The lock goes with the folder until here: without it
        # a second run would take the folder for one that a killed run left.
        (self.final / _LOCK).unlink()
        os.close(self._lock)
        self._lock = None
        self._made = []
        shutil.rmtree(self._old, ignore_errors=True)

    def _check_final(self) -> None:
        final, source = self.final, Path(os.path.realpath(self._source))
        if final == source or source in final.parents or final in source.parents:
            raise CheckpointWriteError(
                f"{final} is, holds or lies in the source {source}; choose another place"
            )
        if not final.exists() and not final.is_symlink():
            return
        if not self._force:
            raise CheckpointWriteError(f"{final} exists; choose another place, or pass --force to replace it")
        linked = [path for path in source.iterdir() if final in Path(os.path.realpath(path)).parents]
        if linked:
            raise CheckpointWriteError(
                f"{final} holds {linked[0].name} of the source {source}, which is a link to it; choose another place"
            )
        plain = final.is_dir() and not final.is_symlink()
        names = {path.name for path in final.iterdir()} if plain else set()
        strange = sorted(name for name in names if (final / name).is_dir() or not _OWN.fullmatch(name))
        weights = any(name.endswith((".pth", ".safetensors", ".bin")) for name in names)
        configured = names & {"params.json", "config.json"}
        if not plain or strange or (names and not (weights and configured)):
            why = f": it holds {some(strange)}" if strange else ""
            why = ": it is a symbolic link" if final.is_symlink() else why
            raise CheckpointWriteError(
                f"{final} does not look like a checkpoint folder{why}, so --force does not replace it;"
                " remove it yourself"
            )

    def _claim(self) -> None:
        """Make the unfinished folder this process's own."""
        self.folder.mkdir(exist_ok=True)
        if self.folder.is_symlink() or any(path.is_dir() for path in self.folder.iterdir()):
            raise CheckpointWriteError(
                f"{self.folder} is in the way, and no conversion made it; remove or rename it"
            )
        lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Until a moment ago it may have been another run's, and have gone with the folder to its final name.
            if not os.path.samestat(os.fstat(lock), os.stat(self.folder / _LOCK)):
                raise BlockingIOError
        except ImportError:  # no such locks on this system
            pass
        except BlockingIOError:
            os.close(lock)
            raise CheckpointWriteError(
                f"another conversion is writing {self.final} (it holds {self.folder}); wait for it, or stop it"
            ) from None
        self._lock = lock
        for path in self.folder.iterdir():
            if path.name != _LOCK:
                path.unlink()

    def _abandon(self) -> None:
        if self._lock is not None:
            # Removed under the lock: a run that waits for the name must not lose what it makes.
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.close(self._lock)
            self._lock = None
        for path in self._made:
            with contextlib.suppress(OSError):  # somebody else put something there
                path.rmdir()

    def _explained(self, error: OSError) -> CheckpointWriteError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = f"the disk, or your share of it, is full ({self._nbytes / GB:.2f} GB are needed)"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            why = f"{error.filename or self.final.parent} may not be written"
        else:
            why = f"{error.strerror or error} ({error.filename or self.folder})"
        return CheckpointWriteError(f"{self.final} was not written: {why}. Nothing was left behind")


def _to_disk(folder: Path) -> None:
    """Wait until the files of a folder are on the disk."""
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
