"""Write the API reference, as HTML, from the docstrings.

    python tools/api_reference.py build/api

`make docs` runs this. A warning of the generator, such as a public name that cannot be found, is an error.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from pathlib import Path

import pdoc

# What a program that uses the package imports. The names of `llama` itself are shown on its own page.
MODULES = (
    "llama",
    "llama.generation",
    "llama.model",
    "llama.tokenizer",
    "llama.prompts",
    "llama.detokenizer",
    "llama.sampling",
    "llama.errors",
    "llama.checkpoint",
    "llama.engine",
    "llama.serving",
)


def write(folder: Path) -> None:
    """A page below `folder` for each of MODULES; index.html leads to them."""
    for module in map(import_module, MODULES):
        for name in module.__all__:  # pdoc looks them up in the module's dictionary, not by `__getattr__`
            setattr(module, name, getattr(module, name))
    pdoc.render.configure(docformat="google")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The keys of a TypedDict that it inherits, on Python 3.11; they are shown all the same.
        warnings.filterwarnings("ignore", "Cannot determine where .* is taken from", UserWarning)
        pdoc.pdoc(*MODULES, output_directory=folder)


if __name__ == "__main__":
    target = Path(*sys.argv[1:] or ["build/api"])
    write(target)
    print(target / "index.html")
