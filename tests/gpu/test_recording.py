"""Laws of the pretended graph: a replay is the recorded step on new inputs, and what a capture refuses is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from pretended_gpu import CaptureError, Recording

CUDA = torch.device("cuda", 0)
pytestmark = pytest.mark.usefixtures("guard")  # of the pretended one itself
TABLE = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


def step(ids: torch.Tensor, position: torch.Tensor, table: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
    """A decode step in small: rows are looked up, stored at their positions, and attended to up to there."""
    x = F.embedding(ids, table)
    cache.index_copy_(0, position, x[:1])
    scores = (x @ cache.t()).masked_fill(torch.arange(len(cache), device=x.device) > position, -torch.inf)
    best, place = torch.max(scores.softmax(-1) @ cache, -1)
    return torch.stack([best, place.float()])


def inputs(ids: int, position: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([ids], device="cuda"), torch.tensor([position], device="cuda")


def test_a_replay_is_the_step_on_what_the_inputs_hold_now(gpu):
    """Across steps, too: each finds what the ones before it stored."""
    table = TABLE.to("cuda")
    recorded, eager = (torch.zeros(6, 8, device="cuda") for _ in range(2))
    ids, position = inputs(3, 0)
    with Recording() as recording:
        out = step(ids, position, table, recorded)
    assert torch.equal(out.cpu(), step(ids, position, table, eager).cpu())
    for new in ((5, 1), (9, 2), (3, 3)):
        for static, value in zip((ids, position), inputs(*new), strict=True):
            static.copy_(value)
        recording.replay()
        assert torch.equal(out.cpu(), step(*inputs(*new), table, eager).cpu())
    assert torch.equal(recorded.cpu(), eager.cpu())
    assert "embedding.default" in recording.operators


def test_a_position_that_is_baked_in_shows(gpu):
    """What the host puts in as a number stays what it was."""
    ids, table = torch.tensor([3], device="cuda"), TABLE.to("cuda")

    def baked(position: int) -> torch.Tensor:
        return F.embedding(ids, table) * position

    with Recording() as recording:
        out = baked(1)
    recording.replay()
    assert torch.equal(out.cpu(), baked(1).cpu())
    recording.replay()
    assert not torch.equal(out.cpu(), baked(2).cpu())


def test_a_copy_from_pinned_memory_is_replayed(gpu):
    source, x = torch.ones(2, pin_memory=True), torch.zeros(2, device="cuda")
    packet = torch.zeros(2, pin_memory=True)
    with Recording() as recording:
        x.copy_(source, non_blocking=True)
        packet.copy_(x * 2, non_blocking=True)
    torch.cuda.synchronize()
    assert packet.tolist() == [2, 2]
    source.fill_(5)
    recording.replay()
    torch.cuda.synchronize()
    assert packet.tolist() == [10, 10]


REFUSED: dict[str, Callable[[torch.Tensor], object]] = {
    "a number": lambda x: x.sum().item(),
    "a list": lambda x: torch.tensor([1.0], device="cuda"),
    "positions of the host": lambda x: x[[0]],
    "a result": lambda x: x.cpu(),
    "where": lambda x: x.nonzero(),
    "an event": lambda x: torch.cuda.Event().synchronize(),
    "the device": lambda x: torch.cuda.synchronize(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_capture_refuses_is_refused(gpu, name):
    x = torch.ones(2, device="cuda")
    with (
        Recording() as recording,
        pytest.raises(CaptureError, match=r"^while a step is recorded, (sync|pageable): "),
    ):
        REFUSED[name](x)
    assert gpu.recording is None
    with Recording(raises=False) as recording:
        x + 1
        REFUSED[name](x)
    assert len(recording.refused) >= 1
    with pytest.raises(CaptureError, match="was not recorded"):
        recording.replay()


def test_the_host_s_own_operators_are_no_part_of_it(gpu):
    with Recording() as recording:
        torch.ones(3).add_(1)
        torch.ones(3, device="cuda").add_(1)
    assert recording.operators == ["ones.default", "add_.Tensor"]
