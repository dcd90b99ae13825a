"""Run a notebook in its own folder, and write it, or a copy, with what it printed.

    python tools/run_notebook.py examples/codellama.ipynb [COPY]

A cell that raises ends this with its traceback. What goes to stderr (loading times) is not kept, so that two runs give
the same file.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

_CELL_SECONDS = 120  # a guard against a hang


def run(source: Path, target: Path) -> None:
    """Execute the notebook `source` and write it, with its outputs, as `target`."""
    notebook = nbformat.read(source, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        # Sockets in a folder of our own: nobody else on the machine can reach the kernel.
        kernel = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=_CELL_SECONDS,
            resources={"metadata": {"path": str(source.resolve().parent)}},
            record_timing=False,
            coalesce_streams=True,
            config=Config(KernelManager=kernel),
        )
        client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    # Which Python ran it is of no interest to a reader.
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run a notebook and write it, or a copy, with its outputs.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument(
        "copy", type=Path, nargs="?", help="where to write the result; default: the notebook itself"
    )
    given = parser.parse_args()
    run(given.notebook, given.copy or given.notebook)
