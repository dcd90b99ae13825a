"""Laws of the pretended GPU itself.

It computes as the CPU, refuses what CUDA refuses, and counts what makes the host wait.
"""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from pretended_gpu import GpuTensor, pretended
from torch import nn

from llama.checkpoint.upload import Upload

CUDA = torch.device("cuda", 0)
pytestmark = pytest.mark.usefixtures("guard")  # of the pretended one itself


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- it computes as the CPU ----

SAME = {
    "linear": lambda x: F.linear(x, x),
    "softmax": lambda x: x.softmax(-1).log_softmax(0),
    "views": lambda x: x.view(2, 2, 4).transpose(0, 1).reshape(4, 4)[1:, ::2],
    "in place": lambda x: x.clone().mul_(2).add_(x).clamp_(-1, 1),
    "out": lambda x: torch.sub(x, 1, out=torch.empty_like(x)),
    "two results": lambda x: torch.stack([x.sort(-1).values, *x.chunk(1)]),
    "pairs of results": lambda x: x.topk(2).indices + x.max(-1).indices[:, None],
    "written slices": lambda x: torch.zeros_like(x).index_copy_(0, torch.arange(2, device=x.device), x[:2]),
    "a product of three": lambda x: torch.einsum("ab,bc,cd->ad", x, x, x),
    "numbers of the host": lambda x: torch.where(x > 0, x, torch.tensor(2.0)) * torch.tensor(3.0),
    "another dtype": lambda x: x.half().to(torch.float64),
    "written with a list": lambda x: x[[0, 2]],
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", SAME)
def test_results_are_those_of_the_cpu(gpu, name, inference):
    """Under inference_mode, too, where torch leaves taking operators apart to the device."""
    x = numbers(4, 4)
    with torch.inference_mode(inference):
        found = SAME[name](x.to("cuda"))
        expected = SAME[name](x)
    assert type(found) is GpuTensor
    assert found.device == CUDA
    assert torch.equal(found.cpu(), expected)


def test_torch_chooses_among_its_attention_kernels_as_on_cuda(gpu):
    """One launch where a kernel takes the shapes; else several, with the heads repeated."""
    for dtype, heads, kernel in (
        (torch.bfloat16, 1, "_scaled_dot_product_flash_attention.default"),
        (torch.float32, 2, "_scaled_dot_product_efficient_attention.default"),
        (torch.float32, 1, "bmm.default"),
    ):
        q, k = numbers(1, 2, 3, 8).to(dtype), numbers(1, heads, 3, 8, seed=1).to(dtype)
        expected = F.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True)
        q, k = q.to("cuda"), k.to("cuda")
        gpu.forget()
        with torch.inference_mode():
            found = F.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True)
        torch.testing.assert_close(
            found.cpu(), expected, atol=1e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1e-5
        )
        assert any(kernel in line for line in gpu.told("launch"))
        assert (gpu.counts["launch"] == 1) == (kernel != "bmm.default")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_kernels_are_a_formula_in_float64(gpu, dtype, causal):
    q, k, v = (numbers(1, 2, length, 8, seed=length).to(dtype) for length in (3, 5, 5))
    seen = torch.ones(3, 5, dtype=torch.bool).tril(2) if causal else torch.ones(3, 5, dtype=torch.bool)
    scores = (q.double() @ k.double().transpose(-1, -2) / 8**0.5).masked_fill(~seen, -torch.inf)
    inputs = [x.to("cuda") for x in (q, k, v)]
    if dtype == torch.float32:
        out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            *inputs, None, True, 0.0, causal
        )
    else:
        out, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(*inputs, 0.0, causal)
    torch.testing.assert_close(out.cpu(), (scores.softmax(-1) @ v.double()).to(dtype))
    torch.testing.assert_close(lse.cpu(), scores.logsumexp(-1).float())
    assert gpu.counts["launch"] == 1


def test_parameters_move_and_are_copied_as_others(gpu):
    layer = nn.Linear(3, 2)
    before, weight = layer.weight.detach().clone(), layer.weight
    for device in ("cuda:0", "cpu", "cuda:1"):
        layer.to(device)
        assert layer.weight is weight
        assert isinstance(weight, nn.Parameter)
        assert str(weight.device) == device
        assert torch.equal(weight.cpu(), before)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.weight.device == torch.device("cuda", 1)
        other.weight.detach().fill_(0)
        assert torch.equal(weight.cpu(), before)


def test_threads_that_begin_within_see_the_device(gpu):
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.tensor([2.0], device="cuda").device))
    thread.start()
    thread.join()
    assert found == [CUDA]


# ---- it refuses what CUDA refuses ----

MIXED = {
    "pointwise": lambda here, there: here + there,
    "a product": lambda here, there: here @ there,
    "joined": lambda here, there: torch.cat([here, there]),
    "where to write": lambda here, there: torch.add(here, 1, out=there),
    "rows of a table": lambda here, there: F.embedding(there.long(), here),
    "a place to gather from": lambda here, there: here.gather(0, there.long()),
    "a number for a product": lambda here, there: torch.dot(here[0], there[0, 0].expand(4)),
}


@pytest.mark.parametrize("other", ["cpu", "cuda:1"])
@pytest.mark.parametrize("name", MIXED)
def test_tensors_of_two_devices_are_refused(gpu, name, other):
    here, there = numbers(4, 4).to("cuda"), torch.zeros(4, 4).to(other)
    with pytest.raises(RuntimeError, match=f"on the same device.*{other}"):
        MIXED[name](here, there)


def test_a_device_that_is_not_there_is_refused(gpu):
    with pytest.raises(RuntimeError, match="cuda:2 of 2"):
        torch.zeros(1, device="cuda:2")


def test_numpy_and_addresses_of_the_cpu_are_not_to_be_had(gpu):
    x = torch.zeros(3, device="cuda")
    with pytest.raises(TypeError, match="cuda:0"):
        x.numpy()
    assert x.data_ptr() > 1 << 59
    assert x[1:].data_ptr() == x.data_ptr() + 4
    assert not x.is_cpu


def test_torch_is_as_before_behind_it(guard):
    with pretended():
        kept = torch.zeros(2, device="cuda")
        assert torch.cuda.is_available()
    assert not torch.cuda.is_available()
    with pytest.raises((RuntimeError, AssertionError)):
        torch.zeros(2, device="cuda")
    with pytest.raises(RuntimeError, match="had ended"):
        kept + 1


# ---- it counts ----


def pinned(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, pin_memory=True)


BLOCKING = {"pageable": 1, "sync": 1}
COUNTED = {
    "a list": (lambda x: torch.tensor([1.0], device="cuda"), {"copy in": 1, **BLOCKING}),
    "a tensor": (lambda x: torch.ones(4).to("cuda"), {"copy in": 1, **BLOCKING}),
    "pageable, and said to be asynchronous": (
        lambda x: torch.ones(4).to("cuda", non_blocking=True),
        {"copy in": 1, "pageable": 1},
    ),
    "pinned": (lambda x: pinned(4).to("cuda"), {"copy in": 1, "sync": 1}),
    "pinned and asynchronous": (lambda x: pinned(4).to("cuda", non_blocking=True), {"copy in": 1}),
    "written": (lambda x: x.copy_(pinned(4, 4), non_blocking=True), {"copy in": 1}),
    "pinned later": (lambda x: torch.ones(4).pin_memory().to("cuda", non_blocking=True), {"copy in": 1}),
    "a pinned list": (
        lambda x: torch.tensor([1.0], pin_memory=True).to("cuda", non_blocking=True),
        {"copy in": 1},
    ),
    "positions of the host": (lambda x: x[[0, 1]], {"copy in": 1, "launch": 1, **BLOCKING}),
    "a slice that is set": (lambda x: x[:1].copy_(torch.ones(4)), {"copy in": 1, **BLOCKING}),
    "to the host": (lambda x: x.cpu(), {"copy out": 1, **BLOCKING}),
    "a list of it": (lambda x: x.tolist(), {"copy out": 1, **BLOCKING}),
    "to pinned memory": (lambda x: pinned(4, 4).copy_(x), {"copy out": 1, "sync": 1}),
    "to pinned memory later": (lambda x: pinned(4, 4).copy_(x, non_blocking=True), {"copy out": 1}),
    "to memory that torch pins": (lambda x: x.to("cpu", non_blocking=True), {"copy out": 1}),
    "a number": (lambda x: x[0, 0].item(), {"sync": 1}),
    "a condition": (lambda x: bool((x == x).all()), {"launch": 2, "sync": 1}),
    "where": (lambda x: x.nonzero(), {"launch": 1, "sync": 1}),
    "a mask": (lambda x: x[x == x], {"launch": 2, "sync": 1}),
    "an event": (lambda x: torch.cuda.Event().synchronize(), {"sync": 1}),
    "a stream": (lambda x: torch.cuda.current_stream().synchronize(), {"sync": 1}),
    "the device": (lambda x: torch.cuda.synchronize(), {"sync": 1}),
    "a product": (lambda x: x @ x, {"launch": 1}),
    "views": (lambda x: x.t()[1:].unflatten(-1, (2, 2)).detach(), {}),
    "memory": (lambda x: torch.empty_like(x), {}),
    "the host alone": (lambda x: torch.ones(4).sum().item(), {}),
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", COUNTED)
def test_everything_that_waits_or_is_copied_is_counted(gpu, name, inference):
    work, expected = COUNTED[name]
    x = torch.zeros(4, 4, device="cuda")
    gpu.forget()
    with torch.inference_mode(inference):
        work(x)
    assert dict(gpu.counts) == expected


def test_a_count_says_where_in_the_package_it_comes_from(gpu):
    upload = Upload(CUDA)
    gpu.forget()
    upload.finish()
    ((line,),) = [gpu.told("sync")]
    assert line.startswith("2 x Event.synchronize at checkpoint/upload.py:")


def test_work_on_another_device_than_the_current_one_is_counted(gpu):
    x = torch.zeros(4, device="cuda:1")
    gpu.forget()
    with torch.cuda.device(1):
        assert torch.cuda.current_device() == 1
        assert torch.zeros(1, device="cuda").device.index == 1
        x.add_(1)
    assert (torch.cuda.current_device(), gpu.counts["off device"]) == (0, 0)
    x.add_(1)
    assert gpu.counts["off device"] == 1


# ---- pinned memory, and what happens later ----


def test_memory_of_the_device_cannot_be_pinned(gpu):
    """As where a program has set its default device, and a buffer of the host is made without naming one."""
    with pytest.raises(RuntimeError, match="Only dense CPU tensors can be pinned"):
        torch.empty(4, device="cuda", pin_memory=True)
    with torch.device("cuda"), pytest.raises(RuntimeError, match="Only dense CPU tensors can be pinned"):
        torch.empty(4, pin_memory=True)


def test_pinned_memory_is_known_by_all_its_views_and_forgotten_with_it(gpu):
    made = torch.empty(8, pin_memory=True)
    assert made.is_pinned()
    assert made.view(2, 4)[1:].is_pinned()
    assert not torch.empty(8).is_pinned()
    for _ in range(50):
        del made
        made = torch.empty(8)  # most likely at the same address
        assert not made.is_pinned()
        made = torch.empty(8, pin_memory=True)
        assert made.is_pinned()


def test_an_asynchronous_copy_arrives_when_it_was_waited_for(gpu):
    x, out = torch.ones(2, device="cuda"), torch.zeros(2, pin_memory=True)
    early = torch.cuda.Event()
    early.record()
    out.copy_(x, non_blocking=True)
    late = torch.cuda.Event()
    late.record(torch.cuda.current_stream())
    x.fill_(5)  # behind the copy
    assert out.isnan().all()
    early.synchronize()
    assert not late.query()
    assert out.isnan().all()
    late.synchronize()
    assert out.tolist() == [1, 1]
    assert late.query()


def test_pinned_memory_that_is_written_to_under_a_copy_is_an_error(gpu):
    source, event = torch.ones(2, pin_memory=True), torch.cuda.Event()
    source.to("cuda", non_blocking=True)
    event.record()
    event.synchronize()
    source.fill_(2)  # nobody reads it any more
    source.to("cuda", non_blocking=True)
    source.numpy()[0] = 3
    with pytest.raises(RuntimeError, match="was written to while"):
        torch.cuda.synchronize()


def test_streams_are_taken_wherever_torch_takes_them(gpu):
    stream, event = torch.cuda.Stream(), torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(stream):
        x = torch.zeros(2, device="cuda")
    x.record_stream(stream)
    stream.wait_stream(torch.cuda.default_stream())
    event.record(stream)
    stream.wait_event(event)
    event.wait(stream)
    assert gpu.counts["sync"] == 0
