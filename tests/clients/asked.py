"""What all clients ask, so that their answers can be compared with each other and with the library's own.

Imports nothing but the standard library: the server's Python and the clients' both load it.
"""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = "CodeLlama-tiny"
# Tokens of prompt and answer together, and of an answer.
ROOM = 1024
TOKENS = 24

COMPLETION = "def fibonacci(n):\n    "
PREFIX = "def read_text(path):\n    with open(path) as file:\n        "
SUFFIX = "\n\n\ndef main():\n    print(read_text(__file__))\n"
CHAT = "Write a function that adds two numbers."
# Infilling as plug-ins write it out, and as text-generation-inference's clients do.
MARKED = f"<PRE> {PREFIX} <SUF>{SUFFIX} <MID>"
FILL_ME = f"{PREFIX}<FILL_ME>{SUFFIX}"

# The same arithmetic whatever else is in the batch.
DTYPE = "float32"


def environment(name: str) -> Path:
    """The folder of programs of an environment that `make clients` made: clients, lm-eval, text-generation."""
    return ROOT / f".venv-{name}" / ("Scripts" if os.name == "nt" else "bin")


def quiet_environment() -> dict[str, str]:
    """This process's environment without keys, proxies and addresses that a client would take from it."""
    ours = ("OPENAI_", "OLLAMA_", "MISTRAL_", "HF_", "LITELLM_", "CODESTRAL_", "CODELLAMA_")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(ours) and not name.upper().endswith("_PROXY")
    }
    return {
        **kept,
        "NO_PROXY": "*",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # it would fetch its price list while it is imported
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
    }
