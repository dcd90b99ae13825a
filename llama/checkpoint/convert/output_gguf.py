"""A GGUF file that appears complete or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import CheckpointWriteError
from ..weight_files.gguf import is_gguf
from .atomic_rename import uninterrupted
from .file_names import UNFINISHED
from .output_folder import OutputFolder

__all__ = ["OutputGguf"]


class OutputGguf(OutputFolder):
    """A new file `final`: `file`, in a temporary folder beside it, gets its name by `publish`, in one step.

    The temporary folder is `.NAME.unfinished`, as for a folder; what a killed run left there has no name that a loader
    takes for a checkpoint.

    Args:
        final: the file to create.
        nbytes: bytes that will be written.
        force: replace `final` if it is a GGUF file.
        sources: files that must not be replaced.

    Raises (on entering):
        CheckpointWriteError: `final` exists, its parent cannot be written, or the disk has too little space.
    """

    def __init__(self, final: Path, nbytes: int, *, force: bool, sources: list[Path]) -> None:
        super().__init__(final, nbytes, force=force, source=Path(os.devnull))
        self._sources = sources

    def __enter__(self) -> OutputGguf:
        super().__enter__()
        return self

    @property
    def file(self) -> Path:
        """Where to write until `publish`."""
        return self.folder / UNFINISHED

    def publish(self) -> None:
        """Give the file its final name. What had that name before is gone then.

        Raises:
            CheckpointWriteError: as on entering.
        """
        self._check_final()
        handle = os.open(self.file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        with uninterrupted():
            self.file.replace(self.final)
            self.published, self._made = True, []

    def _check_final(self) -> None:
        final = self.final
        if not os.path.lexists(final):
            return
        if final.exists() and any(os.path.samefile(final, each) for each in self._sources):
            raise CheckpointWriteError(f"{final} is a file of the source; choose another name")
        if not self._force:
            raise CheckpointWriteError(f"{final} exists; choose another name, or pass --force to replace it")
        why = (
            "it is a symbolic link"
            if final.is_symlink()
            else "it is not a file"
            if not final.is_file()
            else "it is not a GGUF file"
            if not is_gguf(final)
            else ""
        )
        if why:
            raise CheckpointWriteError(
                f"{final} is in the way, and --force does not replace it: {why}; remove it yourself"
            )

    def _restore_aside(self) -> None:
        """Nothing is ever put aside."""
