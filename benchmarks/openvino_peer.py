"""OpenVINO through optimum-intel as a peer. It needs other releases than this project, so it has an environment:

    python -m venv .venv-openvino
    .venv-openvino/bin/pip install -r benchmarks/openvino.txt

`OPENVINO_PYTHON` names the Python of another one. The process lives as long as the peer, and sleeps between runs.
A run's time includes two lines of JSON through a pipe, some 0.1 ms.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from machine import avx2_only
from transformers_peer import make_transformers

from llama.model import Transformer

_HERE = Path(__file__).resolve().parent
_PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


class OpenVino:
    """Continues prompts of ids greedily, in the model's dtype where OpenVINO computes in it on this CPU.

    Args:
        bits: of the weights, quantized as optimum-intel does it by itself: 8 or 4; 0 for plain ones.
    """

    def __init__(self, model: Transformer, *, threads: int, bits: int = 0) -> None:
        python = os.environ.get("OPENVINO_PYTHON", str(_HERE.parent / ".venv-openvino" / "bin" / "python"))
        if not Path(python).exists():
            raise SystemExit(f"OpenVINO's environment is missing: there is no {python}.\n\n{__doc__}")
        self._folder = tempfile.TemporaryDirectory()
        make_transformers(model).model.save_pretrained(self._folder.name)
        command = [python, "-I", str(_HERE / "openvino_worker.py"), self._folder.name]
        self._log = Path(self._folder.name) / "log.txt"
        # Held to AVX2, its oneDNN has no products in 16 bits, though OpenVINO still tries them.
        precision = "f32" if avx2_only() else _PRECISIONS[model.dtype]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, precision, str(threads), str(bits)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.name = f"openvino, {f'int{bits}, ' if bits else ''}{self._answer()['precision']}"

    def run(self, prompts: Sequence[Sequence[int]], new: int) -> list[list[int]]:
        assert self._process.stdin is not None
        asked = {"prompts": [list(prompt) for prompt in prompts], "new": new}
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        tokens: list[list[int]] = self._answer()["tokens"]
        return tokens

    def close(self) -> None:
        """End the process and remove its files."""
        self._process.communicate()
        self._folder.cleanup()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(
                f"OpenVINO's process ended with status {self._process.wait()}; its error is above"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer
