"""Every operator on the pretended device: which devices may meet, what is a launch, what waits for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from . import attention
from .state import Gpu, here
from .tensor import GpuTensor, bare, on_device, tensors_in

__all__ = ["Dispatch", "is_composite", "run", "starts_kernel", "waits"]

aten = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
# Made of others, but for CUDA, where each is one kernel.
_KERNELS_OF_CUDA = {"_fused_rms_norm"}
_CPU = torch.device("cpu")
# Operators that return numbers, or tensors whose size depends on numbers: the host waits.
_WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
}
_INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
# Beside those that torch calls pointwise: they take a number of the host that is a tensor without dimensions.
_TAKING_NUMBERS = {"fill_", "fill", "masked_fill", "masked_fill_", "index_fill", "index_fill_"}
# No kernel is started for these.
_NO_LAUNCH = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift", "lift_fresh"}
_NO_LAUNCH |= {"_unsafe_view", "detach_", "_reshape_alias", "_local_scalar_dense"}


class Dispatch(TorchDispatchMode):
    """Sees operators without a tensor of the device, too: those that make one, and those that copy to it."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler to keep it out of here, which takes a second and a half."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class _Operator:
    """What an operator is, asked once."""

    def __init__(self, func: Any) -> None:
        schema = func._schema
        self.func = func  # kept, so that nothing else gets its identity
        self.name = str(schema.name).partition("::")[2]
        made_of_others = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE)
        self.is_composite = made_of_others and self.name not in _KERNELS_OF_CUDA
        self.special = _SPECIAL.get(func)
        self.is_attention = func in attention.KERNELS
        self.indexes, self.waits = func in _INDEXING, func in _WAITING
        self.takes_numbers = torch.Tag.pointwise in func.tags or self.name in _TAKING_NUMBERS or self.indexes
        aliases = [arg.alias_info for arg in schema.arguments if arg.alias_info is not None]
        self.starts_kernel = all(each.is_write for each in aliases) and self.name not in _NO_LAUNCH
        returned = [each.alias_info for each in schema.returns if each.alias_info is not None]
        self.returns_argument = any(each.is_write for each in returned)


# By identity: torch computes the hash of an operator in Python, and all the answers together take less than one.
_operators: dict[int, _Operator] = {}


def _of(func: Any) -> _Operator:
    found = _operators.get(id(func))
    if found is None:
        found = _operators[id(func)] = _Operator(func)
    return found


def is_composite(func: Any) -> bool:
    """Whether an operator is made of others on every device."""
    return _of(func).is_composite


def starts_kernel(func: Any) -> bool:
    """Whether an operator starts a kernel: views and allocations do not."""
    return _of(func).starts_kernel


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """One operator, or what it is made of."""
    gpu, about = here(), _of(func)
    if about.is_composite:
        # Under inference_mode these arrive whole, and are taken apart here; elsewhere torch has done it. In C++, as on
        # CUDA: torch also has some in Python, for those who trace.
        with Dispatch():
            return func._op_dk(_COMPOSITE, *args, **kwargs)
    if gpu.recording is not None:
        return gpu.recording.run(func, args, kwargs, lambda: _one(gpu, about, args, kwargs))
    return _one(gpu, about, args, kwargs)


def _one(gpu: Gpu, about: _Operator, args: Any, kwargs: Any) -> Any:
    func = about.func
    if about.special is not None and (about.special is not _copy or isinstance(args[1], torch.Tensor)):
        return about.special(gpu, func, *args, **kwargs)
    target, pins = None, False
    if kwargs:
        wanted = kwargs.get("device")
        target = None if wanted is None else gpu.device(wanted)
        pins = bool(kwargs.get("pin_memory"))
        if pins and (target is not None and target.type == "cuda"):
            raise RuntimeError(f"Only dense CPU tensors can be pinned, not one of {target}")
        kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
        if target is not None:
            kwargs["device"] = _CPU
    tensors = tensors_in((args, kwargs) if kwargs else args)
    first = next((x for x in tensors if isinstance(x, GpuTensor)), None)
    if first is None and (target is None or target.type != "cuda"):
        out = func(*args, **kwargs)
        return gpu.transfers.pin(out) if pins else out
    device = first.device if target is None and first is not None else target
    assert device is not None
    if first is not None:
        _check_devices(gpu, about, tensors, first.device)
        if (about.waits or about.indexes) and waits(func, args):
            gpu.count("sync", func)
            gpu.transfers.wait()
    if about.starts_kernel and device.type == "cuda":
        _count_launch(gpu, func, device)
    kernel = attention.KERNELS[func] if about.is_attention else func
    out = kernel(*bare(args), **bare(kwargs))
    out = on_device(out, device) if device.type == "cuda" else out
    return _returned(func, args, kwargs, out) if about.returns_argument else out


def _check_devices(gpu: Gpu, about: _Operator, tensors: list[torch.Tensor], device: torch.device) -> None:
    """Refuse tensors of two devices, as torch does; numbers of the host and, in indexing, positions are taken."""
    for x in tensors:
        if x.device == device or (about.takes_numbers and not x.dim() and x.is_cpu):
            continue
        if about.indexes and x.is_cpu and x.dtype in (torch.long, torch.int, torch.bool, torch.uint8):
            _count_copy(gpu, "copy in", about.func, pinned=False, waits=True)
            continue
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {device} and {x.device}!"
            f" (when checking {about.name})"
        )


def waits(func: Any, args: Any) -> bool:
    """Whether the host needs the result of an operator, or its size."""
    about = _of(func)
    masked = about.indexes and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    return masked or about.waits


def _count_launch(gpu: Gpu, func: Any, device: torch.device) -> None:
    gpu.count("launch", func)
    if device.index != gpu.current:
        gpu.count("off device", func)


def _count_copy(gpu: Gpu, kind: str, func: Any, *, pinned: bool, waits: bool) -> None:
    gpu.count(kind, func)
    if not pinned:
        gpu.count("pageable", func)
    if waits:
        gpu.count("sync", func)
        gpu.transfers.wait()


def _to_copy(gpu: Gpu, func: Any, source: torch.Tensor, **kwargs: Any) -> Any:
    """`x.to(...)` that makes a new tensor."""
    target = source.device if kwargs.get("device") is None else gpu.device(kwargs["device"])
    options = {name: kwargs[name] for name in ("dtype", "layout", "memory_format") if name in kwargs}
    later = bool(kwargs.get("non_blocking"))
    made = func(bare(source), **options)
    if target.type == source.device.type == "cuda":
        _count_launch(gpu, func, target)
        return GpuTensor(made, target)
    if target.type == "cuda":
        _enter(gpu, func, source, later)
        return GpuTensor(made, target)
    if source.device.type == "cuda":
        if later:  # torch takes pinned memory for the result
            gpu.transfers.pin(made)
        return _leave(gpu, func, made.clone() if later else made, made, later)
    return gpu.transfers.pin(made) if kwargs.get("pin_memory") else made


def _copy(
    gpu: Gpu, func: Any, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False
) -> torch.Tensor:
    """`target.copy_(source)`."""
    if target.device.type == source.device.type == "cuda":
        _count_launch(gpu, func, target.device)
    elif target.device.type == "cuda":
        _enter(gpu, func, source, non_blocking)
    elif source.device.type == "cuda":
        _leave(gpu, func, bare(source), target, non_blocking)
        return target
    bare(target).copy_(bare(source))
    return target


def _enter(gpu: Gpu, func: Any, source: torch.Tensor, later: bool) -> None:
    """A copy from the host. From memory that is not pinned, an asynchronous one too has read it all when it returns."""
    pinned = gpu.transfers.is_pinned(source)
    if later and pinned:
        gpu.transfers.bring_in(source)
    _count_copy(gpu, "copy in", func, pinned=pinned, waits=not later)


def _leave(gpu: Gpu, func: Any, source: torch.Tensor, target: torch.Tensor, later: bool) -> torch.Tensor:
    """A copy to the host. Into memory that is not pinned, an asynchronous one waits as well."""
    pinned = gpu.transfers.is_pinned(target)
    if later and pinned:
        gpu.transfers.bring_out(source.to(target.dtype).expand_as(target), target)
    _count_copy(gpu, "copy out", func, pinned=pinned, waits=not (later and pinned))
    return target if later and pinned else target.copy_(source)


def _pinned_memory(gpu: Gpu, func: Any, x: torch.Tensor, device: Any = None) -> Any:
    if func is aten.is_pinned.default:
        return not isinstance(x, GpuTensor) and gpu.transfers.is_pinned(x)
    if isinstance(x, GpuTensor):
        raise RuntimeError(f"cannot pin a tensor of {x.device}: only dense CPU tensors can be pinned")
    return gpu.transfers.pin(x.clone())


def _returned(func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    """What the operator returns: its own argument where it wrote into that."""
    schema = func._schema
    given = {arg.name: value for arg, value in zip(schema.arguments, args, strict=False)} | kwargs
    targets = {
        next(iter(arg.alias_info.before_set)): given[arg.name]
        for arg in schema.arguments
        if arg.alias_info is not None and arg.alias_info.is_write and arg.name in given
    }
    found = [targets[next(iter(r.alias_info.before_set))] for r in schema.returns if r.alias_info is not None]
    for x in found:
        if isinstance(x, GpuTensor) and x.shape != x.host.shape:
            raise NotImplementedError(f"{func} changes the shape of its argument in place")
    return found[0] if len(found) == 1 else tuple(found)


# Copies, and pinned memory.
_SPECIAL = {
    aten._to_copy.default: _to_copy,
    aten.copy_.default: _copy,
    aten._copy_from.default: _copy,
    aten.is_pinned.default: _pinned_memory,
    aten._pin_memory.default: _pinned_memory,
}
