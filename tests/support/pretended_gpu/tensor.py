"""A tensor that says it is on the device, and whose numbers are a tensor of the CPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

__all__ = ["DATA", "GpuTensor", "bare", "on_device", "tensors_in"]

# No address of a CPU: whoever reads there ends with a signal, and not with wrong numbers.
_NOT_AN_ADDRESS = 1 << 60


class GpuTensor(torch.Tensor):
    """`host` holds the numbers; nothing but this folder looks at it."""

    host: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: torch.Tensor, device: torch.device) -> GpuTensor:
        assert type(host) is not GpuTensor
        assert host.is_cpu
        options: dict[str, Any] = {
            "strides": host.stride(),
            "storage_offset": host.storage_offset(),
            "dtype": host.dtype,
            "layout": host.layout,
            "device": device,
            "requires_grad": False,
        }
        inference = host.is_inference()
        if inference == torch.is_inference_mode_enabled():
            return torch.Tensor._make_wrapper_subclass(cls, host.size(), **options)
        # A view of a tensor that counts its edits counts them too, also where it is made in inference mode.
        with torch.inference_mode(inference):
            return torch.Tensor._make_wrapper_subclass(cls, host.size(), **options)

    def __init__(self, host: torch.Tensor, device: torch.device) -> None:
        self.host = host

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from .dispatch import run

        return run(func, args, kwargs or {})

    # ---- what torch answers in C++, by looking at memory ----

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host"
            " memory first."
        )

    __array__ = numpy

    def data_ptr(self) -> int:
        return self.host.data_ptr() + _NOT_AN_ADDRESS

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.host.untyped_storage()

    def is_shared(self) -> bool:
        return True  # as torch says of every tensor on CUDA

    def record_stream(self, stream: Any) -> None:
        """There is one stream, which runs at once."""

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        set_data(self, value)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        if id(self) not in memo:
            fresh = self.detach().clone()
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(fresh, requires_grad=False) if is_parameter else fresh
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _unpickled, (self.host.detach().clone(), self.device, isinstance(self, torch.nn.Parameter))

    def __repr__(self, **_: Any) -> str:
        return f"GpuTensor({self.host!r}, device={str(self.device)!r})"


def _unpickled(host: torch.Tensor, device: torch.device, is_parameter: bool) -> torch.Tensor:
    made = GpuTensor(host, device)
    return torch.nn.Parameter(made, requires_grad=False) if is_parameter else made


def set_data(parameter: torch.Tensor, value: torch.Tensor) -> None:
    """`parameter.data = value`, which moves a parameter: torch would take the tensor's memory, and not its `host`."""
    if not isinstance(parameter, GpuTensor) and not isinstance(value, GpuTensor):
        _DATA.__set__(parameter, value)
        return
    fresh = torch.nn.Parameter(value.detach(), requires_grad=parameter.requires_grad)
    hooks = {name: each for name, each in vars(parameter).items() if name not in ("host", "_is_param")}
    parameter.__class__, fresh.__class__ = fresh.__class__, parameter.__class__
    parameter.__dict__, fresh.__dict__ = {**vars(fresh), **hooks}, vars(parameter)
    torch._C._swap_tensor_impl(parameter, fresh)  # type: ignore[attr-defined]


_DATA: Any = torch.Tensor.data
# For classes that are parameters while a device is pretended.
DATA = property(lambda parameter: _DATA.__get__(parameter), set_data)


def bare(tree: Any) -> Any:
    """The same arguments, with tensors of the CPU in the place of the device's."""
    kind = type(tree)
    if kind is GpuTensor:
        return tree.host
    if kind is list or kind is tuple:
        return kind([bare(each) if type(each) in _CHANGED else each for each in tree])
    return {name: bare(value) for name, value in tree.items()} if kind is dict else tree


_CHANGED = {GpuTensor, list, tuple, dict}


def on_device(tree: Any, device: torch.device) -> Any:
    """The same results, with tensors of the device in the place of the CPU's."""
    if type(tree) is torch.Tensor:
        return GpuTensor(tree, device)
    return type(tree)(on_device(each, device) for each in tree) if type(tree) in (list, tuple) else tree


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """All tensors among arguments or results."""
    found: list[torch.Tensor] = []
    _gather((tree,), found)
    return found


def _gather(trees: Iterable[Any], found: list[torch.Tensor]) -> None:
    for each in trees:
        if isinstance(each, torch.Tensor):
            found.append(each)
        elif isinstance(each, list | tuple):
            _gather(each, found)
        elif isinstance(each, dict):
            _gather(each.values(), found)
