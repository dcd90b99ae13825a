"""A folder that appears complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from types import TracebackType

from ...errors import CheckpointWriteError
from ...printable import reason
from ..files import some
from .atomic_rename import take_name, uninterrupted
from .file_names import CONFIG, PARAMS, is_weights, is_written

__all__ = ["OutputFolder"]

GB = 10**9
# Space for the files beside the weights, and for the file system's own data.
_SPARE = 32 << 20
_LOCK = ".lock"


class OutputFolder:
    """A new folder `final`: files go into `folder`, a temporary one beside it, until `publish` renames it.

    The temporary folder is `.NAME.unfinished`. If a killed run left one, the next run removes it; if another
    run is writing it, that run holds its lock, and this one is refused. Only files with names that a
    conversion writes (file_names.py) are ever removed, and nothing is written through a link.

    Args:
        final: the folder to create.
        nbytes: bytes that will be written.
        force: replace `final` if it is a checkpoint folder.
        source: a folder, or a file, that must not be replaced.

    Attributes:
        folder: where to write files until `publish`.
        published: `final` is the new folder.

    Raises (on entering):
        CheckpointWriteError: `final` exists, its parent cannot be written, or the disk has too little space.
    """

    def __init__(self, final: Path, nbytes: int, *, force: bool, source: Path) -> None:
        # Links in the path are followed. A link as its last part is itself the target, and is refused.
        self.final = (
            Path(os.path.realpath(final.parent)) / final.name if final.name else Path(os.path.realpath(final))
        )
        self.folder = self.final.parent / f".{self.final.name}.unfinished"
        self.published = False
        self._nbytes, self._force, self._source = nbytes, force, source
        self._lock: int | None = None
        self._made: list[Path] = []  # missing parents that were created, innermost first
        self._old = self.final.parent / f".{self.final.name}.replaced"

    def __enter__(self) -> OutputFolder:
        try:
            self._check_final()
            blocked = next((path for path in self.final.parents if path.exists() and not path.is_dir()), None)
            if blocked is not None:
                raise CheckpointWriteError(f"{blocked} is a file, not a folder to put {self.final.name} into")
            self._made = [path for path in self.final.parents if not path.exists()]
            self.final.parent.mkdir(parents=True, exist_ok=True)
            with uninterrupted():
                self._claim()
            self._restore_aside()
            free = shutil.disk_usage(self.folder).free
            if free < self._nbytes + _SPARE:
                raise CheckpointWriteError(
                    f"{self.final} needs {(self._nbytes + _SPARE) / GB:.2f} GB, but its disk has {free / GB:.2f} GB"
                    " free; free some, or choose another place"
                )
        except BaseException as error:
            self._leave(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(error)

    def publish(self) -> None:
        """Give the folder its final name, and remove what had that name before.

        A signal that arrives meanwhile is handled afterwards; the folder is then the new one.

        Raises:
            CheckpointWriteError: as on entering; or something else got into the folder that was replaced.
        """
        assert self._lock is not None
        assert not _strange(self.folder), "file_names.py does not list what was written"
        self._check_final()
        if not self.final.exists():
            with uninterrupted():
                self.folder.rename(self.final)
                self._took_name(self.folder, None)
            return
        _to_disk(self.folder)  # before the folder that it replaces is removed below
        with uninterrupted():
            old = self._locked(self.final)
            try:
                replaced = take_name(self.folder, self.final, self._old)
            except BaseException:
                (self.final / _LOCK).unlink()
                os.close(old)
                raise
            # From here on the old folder has the temporary name and is locked: no other run takes it over
            # until it is gone.
            self._took_name(replaced, old)
            with contextlib.suppress(OSError):  # not every file system can sync a folder
                _to_disk(self.final.parent, inside=False)
            gone = self._abandon()
        if not gone:
            raise CheckpointWriteError(
                f"{self.final} is written and complete; but the folder that it replaced, which is now {replaced}, holds"
                " something that no conversion wrote or that cannot be removed. Take out what you need, and remove it"
            )

    def _took_name(self, folder: Path, lock: int | None) -> None:
        """Record that the new folder is in place, and the old one is `folder`, locked by `lock` (None: no old one)."""
        assert self._lock is not None
        ours, self._lock = self._lock, lock
        self.folder, self.published, self._made = folder, True, []
        # The lock moved with the folder. Without it, a second run would have taken the folder for a leftover.
        with contextlib.suppress(OSError):
            (self.final / _LOCK).unlink()
        os.close(ours)

    def _check_final(self) -> None:
        final, source = self.final, Path(os.path.realpath(self._source))
        if final == source or source in final.parents or final in source.parents:
            raise CheckpointWriteError(
                f"{final} is, contains or is inside the source {source}; choose another place"
            )
        if not final.exists() and not final.is_symlink():
            return
        if final.exists() and os.path.samefile(final, os.curdir):
            raise CheckpointWriteError(
                f"{final} is the current folder, and would be replaced; choose another place"
            )
        if not self._force:
            raise CheckpointWriteError(f"{final} exists; choose another place, or pass --force to replace it")
        files = source.iterdir() if source.is_dir() else ()
        linked = [path for path in files if final in Path(os.path.realpath(path)).parents]
        if linked:
            raise CheckpointWriteError(
                f"{final} holds {linked[0].name}, to which the source {source} has a link; choose another place"
            )
        why = self._why_not_replaceable()
        if why:
            raise CheckpointWriteError(
                f"{final} does not look like a checkpoint folder: {why}, so --force does not replace it;"
                " remove it yourself"
            )

    def _why_not_replaceable(self) -> str:
        """Why what is at the final path must not be replaced; "" if it may be."""
        if self.final.is_symlink():
            return "it is a symbolic link"
        if not self.final.is_dir():
            return "it is not a folder"
        strange = _strange(self.final)
        if strange:
            return f"it holds {some(strange)}, which no conversion writes"
        names = {path.name for path in self.final.iterdir()} - {_LOCK}
        if names and not (any(map(is_weights, names)) and names & {PARAMS, CONFIG}):
            return "it has no weights, or no params.json or config.json"
        return ""

    def _claim(self) -> None:
        """Create the temporary folder, or take over the one that a killed run left, and lock it."""
        try:
            self.folder.mkdir()
        except FileExistsError:
            plain = self.folder.is_dir() and not self.folder.is_symlink()
            strange = _strange(self.folder) if plain else []
            if not plain or strange:
                holds = f": it holds {some(strange)}" if strange else ""
                raise CheckpointWriteError(
                    f"{self.folder} is in the way, and no conversion made it{holds}; remove or rename it"
                ) from None
            if hasattr(os, "geteuid") and self.folder.stat().st_uid != os.geteuid():
                # The owner of a folder can put links into it at any time.
                raise CheckpointWriteError(
                    f"{self.folder} is in the way, and belongs to another user; ask them to remove it"
                ) from None
        self._lock = self._locked(self.folder)
        _empty(self.folder, but_lock=True)

    def _locked(self, folder: Path) -> int:
        """Lock a folder -> descriptor of the lock file, which moves with the folder when that is renamed."""
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between open and lock, another run may have renamed the folder, with this lock file, to its
            # final name.
            if not os.path.samestat(os.fstat(lock), os.lstat(folder / _LOCK)):
                raise BlockingIOError
        except ImportError:  # the system has no such locks
            pass
        except BlockingIOError:
            os.close(lock)
            raise CheckpointWriteError(
                f"another conversion is writing {self.final} (it holds {folder}); wait for it, or stop it"
            ) from None
        return lock

    def _restore_aside(self) -> None:
        """Undo the first rename of a run that was killed between two renames."""
        if not os.path.lexists(self._old):
            return
        if os.path.lexists(self.final) or self._old.is_symlink() or not self._old.is_dir():
            raise CheckpointWriteError(
                f"{self._old} is in the way: it may be the earlier {self.final.name}, left there by a conversion that"
                " was killed. Look into it, then remove or rename it"
            )
        self._old.rename(self.final)
        self._check_final()

    def _abandon(self) -> bool:
        """Remove the locked folder -> whether it is gone."""
        gone = False
        if self._lock is not None:
            # Removed while locked, so that a run that waits for the name does not lose what it creates.
            with contextlib.suppress(OSError):
                _empty(self.folder)
                self.folder.rmdir()
                gone = True
            os.close(self._lock)
            self._lock = None
        for path in self._made:
            with contextlib.suppress(OSError):  # something else was put there
                path.rmdir()
        return gone

    def _leave(self, error: BaseException | None) -> None:
        """Remove what is unfinished, even if a second signal arrives; add to the error what is left."""
        try:
            with uninterrupted():
                self._abandon()
        except BaseException as end:
            end.add_note(self._state())
            raise
        if isinstance(error, OSError):
            raise self._explained(error) from error
        if error is not None and not isinstance(error, Exception):
            error.add_note(self._state())

    def _state(self) -> str:
        """What is there now, for the line that an interrupted command prints."""
        if self.published:
            return f"{self.final} was already written, and is complete"
        kept = "; what was there is unchanged" if os.path.lexists(self.final) else ""
        left = f"; {self.folder} is left" if os.path.lexists(self.folder) else ""
        return f"{self.final} was not written{kept}{left}"

    def _explained(self, error: OSError) -> CheckpointWriteError:
        if self.published:
            return CheckpointWriteError(f"{self.final} is written and complete; but then: {reason(error)}")
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = f"the disk or your quota is full ({self._nbytes / GB:.2f} GB are needed)"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            why = f"{error.filename or self.final.parent} may not be written"
        else:
            why = f"{error.strerror or reason(error)} ({error.filename or self.folder})"
        return CheckpointWriteError(f"{self.final} was not written: {why}. Nothing was left behind")


def _is_own(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False) and (entry.name == _LOCK or is_written(entry.name))


def _strange(folder: Path) -> list[str]:
    """Sorted names in a folder that no conversion wrote; links and folders are among them."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not _is_own(entry))


def _empty(folder: Path, but_lock: bool = False) -> None:
    """Remove a conversion's files from a folder; anything else stays. The lock file goes last."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _is_own(entry)]
    for name in sorted(names, key=lambda each: each == _LOCK):
        if not (but_lock and name == _LOCK):
            (folder / name).unlink()


def _to_disk(folder: Path, inside: bool = True) -> None:
    """Flush a folder, and with `inside` the files in it, to disk."""
    for path in (*(folder.iterdir() if inside else ()), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
