"""Whether a model is still what it was: the parts that host programs change, compared from one look to the next.

Research code edits weights, puts modules in the place of others and hangs hooks on them. What was computed before is of
another model then. A look reads addresses and counters, never a weight. It does not see a weight that is written to
behind torch's back (`.data`, numpy, another process), tensors made within `torch.inference_mode`, which count no edits,
what a hook or function has enclosed, attributes whose name begins with an underscore, and what was changed and changed
back between two looks, hooks aside.
"""

from __future__ import annotations

import weakref
from operator import is_

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle

__all__ = ["ModelWatch"]

# Most of what a module has by itself; asking whether these are tensors would be half of a look.
_NUMBERS = frozenset({bool, int, float, str})


class ModelWatch:
    """Counts the changes of a model.

    Args:
        model: is looked at; no parameter or buffer of it is kept in memory.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._seen: tuple[list[object], list[object]] | None = None
        self._handles = -1
        self.changes = 0

    def look(self) -> None:
        """Compare the model with what it was at the last look, and count a change."""
        self._handles = RemovableHandle.next_id
        same, equal = _picture(self._model)
        if self._seen is not None:
            before, values = self._seen
            if len(same) != len(before) or not all(map(is_, same, before)) or equal != values:
                self.changes += 1
        self._seen = same, equal

    def glance(self) -> None:
        """`look` if a hook was registered anywhere since, so that one which is gone again was seen. For every step."""
        if self._seen is not None and RemovableHandle.next_id != self._handles:
            self.look()


def _picture(model: nn.Module) -> tuple[list[object], list[object]]:
    """(objects that must be the same ones, values that must be equal) while a model is unchanged."""
    modules = [model]
    for module in modules:  # which grows meanwhile
        if module._modules:
            modules += [child for child in module._modules.values() if child is not None]
    own = [value for m in modules for name, value in vars(m).items() if name[0] != "_"]
    stores = [store for m in modules for store in (m._parameters, m._buffers) if store]
    tensors = [tensor for store in stores for tensor in store.values() if tensor is not None]
    tensors += [value for value in own if type(value) not in _NUMBERS and isinstance(value, torch.Tensor)]
    kinds = list(map(type, modules))
    # A reference that is held stays the only one to its object, and is never that of a later object in its place.
    same: list[object] = [*map(weakref.ref, modules), *map(weakref.ref, tensors), *kinds, *own]
    same += [getattr(kind, "forward", None) for kind in dict.fromkeys(kinds)]
    equal: list[object] = [(_address(t), _version(t)) for t in tensors]
    # Each hook's key is its own for all time.
    equal += [(*m._forward_pre_hooks, *m._forward_hooks) for m in modules]
    equal += [*torch_module._global_forward_pre_hooks, *torch_module._global_forward_hooks]
    equal += [repr(getattr(model, "params", None))]
    return same, equal


def _address(tensor: torch.Tensor) -> int:
    try:
        return 0 if tensor.is_mkldnn else tensor.data_ptr()
    except RuntimeError:  # it has no memory of its own
        return 0


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
