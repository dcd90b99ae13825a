"""Laws of a service on a GPU whose step fails: it goes on, unless the device is lost for the process."""

from __future__ import annotations

import asyncio
import weakref
from pathlib import Path

import pytest
import torch
from pretended_gpu import Gpu

from llama import Llama
from llama.model import Transformer
from llama.serving import AsyncEngine

TEXT = "def return self value"


@pytest.fixture
def llama(gpu: Gpu, tiny_checkpoint: Path) -> Llama:
    return Llama.build(tiny_checkpoint, None, 96, 4, device="cuda", dtype="float32")


def failing_once(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> list[weakref.ReferenceType[torch.Tensor]]:
    """The next forward raises an error -> what it has computed by then."""
    hidden = Transformer.hidden
    computed: list[weakref.ReferenceType[torch.Tensor]] = []

    def fail(model: Transformer, ids: torch.Tensor, step: object) -> torch.Tensor:
        monkeypatch.setattr(Transformer, "hidden", hidden)
        activations = model.tok_embeddings(ids)
        computed.append(weakref.ref(activations))
        raise error

    monkeypatch.setattr(Transformer, "hidden", fail)
    return computed


async def answers(llama: Llama, engine: AsyncEngine) -> list[str]:
    """What two requests get, one after the other: a text, or the name of the error."""
    found = []
    for _ in range(2):
        (request,) = llama.requests([TEXT], 0, max_gen_len=4)
        try:
            found.append("".join([delta.text for delta in await engine.complete(request)]))
        except Exception as error:
            found.append(type(error).__name__)
    return found


def test_a_step_without_enough_memory_ends_its_requests_alone(
    llama: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = llama.text_completion([TEXT], 0, max_gen_len=4)[0]["generation"]
    error = torch.OutOfMemoryError("CUDA out of memory")
    computed = failing_once(monkeypatch, error)
    found = asyncio.run(llama.serve(lambda engine: answers(llama, engine)))
    assert found == ["OutOfMemoryError", expected]
    assert error.__traceback__ is not None
    assert [each() for each in computed] == [None], "the error keeps the step's memory"


def test_a_service_whose_device_is_lost_ends(llama: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request would fail from then on, while the service says that it is well."""
    lost = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def synchronize(device: object = None) -> None:
        raise lost

    async def main(engine: AsyncEngine) -> list[str]:
        failing_once(monkeypatch, lost)
        monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
        found = await answers(llama, engine)
        assert not engine.accepting
        return found

    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        asyncio.run(llama.serve(main))
