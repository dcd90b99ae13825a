"""llama.cpp as a peer, through llama-cpp-python's low-level calls (`pip install -e ".[bench]"`).

It is given the same weights as a GGUF file; see gguf_export.py.

pip compiles llama.cpp for the CPU at hand. To compare with it on AVX2 (`--level x86-64-v3`) where the CPU has more,
compile another one, and name the folder of its libraries:

    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_BMI2=ON -DGGML_FMA=ON \\
        -DGGML_F16C=ON" pip install --no-deps --no-binary llama-cpp-python --target DIR llama-cpp-python==0.3.36
    export LLAMA_CPP_LIB_PATH=DIR/llama_cpp/lib
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from gguf_export import export, library
from machine import avx2_only
from transformers_peer import plain_weights

from llama.model import Transformer


class LlamaCpp:
    """Continues prompts of ids greedily: prefill one after the other, then decode together."""

    name = "llama.cpp"

    @classmethod
    def of_model(cls, model: Transformer, *, threads: int, context: int, sequences: int) -> LlamaCpp:
        """With the weights of a model, in its dtype."""
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
            file = Path(folder) / "model.gguf"
            export(model.params, plain_weights(model), file)
            return cls(file, model.params.vocab_size, threads=threads, context=context, sequences=sequences)

    def __init__(self, file: Path, vocab: int, *, threads: int, context: int, sequences: int) -> None:
        self._lc = lc = library()
        has = lc.llama_print_system_info().decode()
        if avx2_only() and "AVX512 = 1" in has:
            raise SystemExit(f"this llama.cpp was compiled with more than AVX2: {has}\n\n{__doc__}")
        parameters = lc.llama_model_default_params()
        self._model = lc.llama_model_load_from_file(str(file).encode(), parameters)
        self._vocab = vocab
        options = lc.llama_context_default_params()
        options.n_ctx = context * sequences
        options.n_seq_max = sequences
        options.n_batch = options.n_ubatch = 512
        options.n_threads = options.n_threads_batch = threads
        self._context = lc.llama_init_from_model(self._model, options)
        self._batch = lc.llama_batch_init(512, 0, 1)
        if not self._model or not self._context:
            raise RuntimeError(f"llama.cpp did not load {file}")

    def run(self, prompts: Sequence[Sequence[int]], new: int) -> list[list[int]]:
        lc = self._lc
        lc.llama_memory_clear(lc.llama_get_memory(self._context), True)
        last = [self._prefill(i, prompt) for i, prompt in enumerate(prompts)]
        out = [[token] for token in last]
        for step in range(new - 1):
            rows = [
                (token, len(prompt) + step, i, True)
                for i, (prompt, token) in enumerate(zip(prompts, last, strict=True))
            ]
            self._decode(rows)
            last = [self._best(i) for i in range(len(prompts))]
            for each, token in zip(out, last, strict=True):
                each.append(token)
        return out

    def close(self) -> None:
        """Free the model and its context."""
        self._lc.llama_batch_free(self._batch)
        self._lc.llama_free(self._context)
        self._lc.llama_model_free(self._model)

    def serve(self, prompts: Sequence[Sequence[int]], gap: float, new: int) -> tuple[list[float], float]:
        """Requests that arrive `gap` seconds apart, decoded together, prompts beside them in what is left of
        a batch.

        Returns: the time to the first token of each from its arrival, and the time until all have ended.
        """
        lc = self._lc
        lc.llama_memory_clear(lc.llama_get_memory(self._context), True)
        started = time.perf_counter()
        first = [0.0] * len(prompts)
        done = [0] * len(prompts)  # tokens of the prompt that have been computed
        out: list[list[int]] = [[] for _ in prompts]
        left = set(range(len(prompts)))
        while left:
            now = time.perf_counter() - started
            here = sorted(i for i in left if gap * i <= now)
            if not here:
                time.sleep(max(0.0, gap * min(left) - now))
                continue
            rows = [(out[i][-1], len(prompts[i]) + len(out[i]) - 1, i, True) for i in here if out[i]]
            asked = [i for i in here if out[i]]
            for i in here:
                if not out[i] and len(rows) < 512:
                    take = prompts[i][done[i] : done[i] + 512 - len(rows)]
                    rows += [
                        (token, done[i] + j, i, done[i] + j == len(prompts[i]) - 1)
                        for j, token in enumerate(take)
                    ]
                    done[i] += len(take)
                    if done[i] == len(prompts[i]):
                        asked.append(i)
            self._decode(rows)
            tokens = [self._best(j) for j, row in enumerate(rows) if row[3]]
            now = time.perf_counter() - started
            for i, token in zip(asked, tokens, strict=True):
                first[i] = first[i] or now - gap * i
                out[i].append(token)
                if len(out[i]) == new:
                    left.discard(i)
        return first, time.perf_counter() - started

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """The logits behind each of up to 512 ids, (ids, vocabulary)."""
        lc = self._lc
        lc.llama_memory_clear(lc.llama_get_memory(self._context), True)
        self._decode([(token, i, 0, True) for i, token in enumerate(ids)])
        return np.stack([self._row(i) for i in range(len(ids))])

    def _prefill(self, sequence: int, prompt: Sequence[int]) -> int:
        for first in range(0, len(prompt), 512):
            chunk = prompt[first : first + 512]
            rows = [
                (token, first + i, sequence, first + i == len(prompt) - 1) for i, token in enumerate(chunk)
            ]
            self._decode(rows)
        return self._best(len(chunk) - 1)

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = wanted
        batch.n_tokens = len(rows)
        code = self._lc.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode gave {code}")

    def _row(self, index: int) -> np.ndarray:
        pointer = self._lc.llama_get_logits_ith(self._context, index)
        return np.ctypeslib.as_array(pointer, shape=(self._vocab,))

    def _best(self, index: int) -> int:
        return int(self._row(index).argmax())
