"""jupyterlab-cellsense's own code between a cell and the model: it writes infilling as text, in its own spelling."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest
from asked import MODEL, PREFIX, SUFFIX, TOKENS
from cellsense.backend.context.assembler import FileContextBlock
from cellsense.backend.prompt_builder import PromptBuilder
from cellsense.backend.providers import CompletionProvider, build_provider
from cellsense.backend.registry import default_registry

# Milliseconds that it waits for a completion; a guard here.
PATIENCE = 120_000


def ask(url: str, kind: str, use: Callable[[CompletionProvider], Awaitable[object]]) -> object:
    """Use a provider as the extension makes it."""

    async def main() -> object:
        async with httpx.AsyncClient(timeout=PATIENCE / 1000) as http:
            given = {"base_url": url, "api_key": "", "model": MODEL, "max_tokens": TOKENS, "client": http}
            return await use(build_provider(kind=kind, **given))

    return asyncio.run(main())


def built(**more: object):
    """The prompt that its completion handler builds."""
    family = default_registry().get("codellama")
    return PromptBuilder(family).build(PREFIX, SUFFIX, file_path="notebook.py", **more)


@pytest.mark.parametrize("kind", ["openai", "ollama"])
def test_its_prompt_is_recognised_as_infilling(url, kind) -> None:
    """The text in front of <PRE> becomes the head of the prefix. Both routes give what the structured call gives."""
    prompt = built()
    head, _, rest = prompt.text.partition("<PRE>")
    assert rest == f"{PREFIX}<SUF>{SUFFIX}<MID>"
    filled = ask(url, kind, lambda provider: provider.stream_complete(prompt, timeout_ms=PATIENCE))
    body = {"prompt": head + PREFIX, "suffix": SUFFIX, "max_tokens": TOKENS, "temperature": 0}
    wanted = httpx.post(f"{url}/v1/completions", json=body, timeout=PATIENCE / 1000).json()["choices"][0][
        "text"
    ]
    stops = [*prompt.special_stop_words, *prompt.generic_stop_words]
    ends = [wanted.index(stop) for stop in stops if stop in wanted]
    assert filled == wanted[: min(ends, default=None)]
    assert filled


@pytest.mark.parametrize("kind", ["openai", "ollama"])
def test_other_cells_come_in_front(url, kind) -> None:
    other = FileContextBlock("other.py", "viewed", "import os\n", start_line=0, end_line=1, cell_index=None)
    prompt = built(context_chunks=[other])
    assert prompt.text.startswith("# File:other.py\nimport os\n")
    filled = ask(url, kind, lambda provider: provider.stream_complete(prompt, timeout_ms=PATIENCE))
    assert isinstance(filled, str)
    assert "<" not in filled


def test_its_warm_up_succeeds(url) -> None:
    ask(url, "ollama", lambda provider: provider.warmup())
