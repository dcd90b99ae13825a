"""Notices when the host program changes the model.

Research code edits weights, replaces modules and registers hooks. Cached keys and values then belong to
another model. A look reads addresses and counters, never a weight. It does not see: a weight written to
without torch's knowledge (`.data`, numpy, another process); edits of tensors made within
`torch.inference_mode`, which count none; what a hook or function closes over; attributes whose name begins
with an underscore; a change that was taken back between two looks, hooks excepted.
"""

from __future__ import annotations

import weakref
from operator import is_

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle

__all__ = ["ModelWatch"]

# Most plain attributes are of these types; asking whether they are tensors would take half of a look.
_NUMBERS = frozenset({bool, int, float, str})


class ModelWatch:
    """Counts the changes of a model.

    Args:
        model: no parameter or buffer of it is kept in memory.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._seen: tuple[list[object], list[object]] | None = None
        self._handles = -1
        self._seen_changes = 0
        self._told_changes = 0

    @property
    def changes(self) -> int:
        """Changes so far, seen or told."""
        return self._seen_changes + self._told_changes

    def count_change(self) -> None:
        """Count a change that a look does not see. From any thread."""
        self._told_changes += 1

    def look(self) -> int:
        """Compare the model with the last look, and count a change -> all changes so far."""
        self._handles = RemovableHandle.next_id
        same, equal = _picture(self._model)
        if self._seen is not None:
            before, values = self._seen
            if len(same) != len(before) or not all(map(is_, same, before)) or equal != values:
                self._seen_changes += 1
        self._seen = same, equal
        return self.changes

    def glance(self) -> None:
        """`look` if a hook was registered since, to notice one that is removed again. For every step."""
        if self._seen is not None and RemovableHandle.next_id != self._handles:
            self.look()


def _picture(model: nn.Module) -> tuple[list[object], list[object]]:
    """(objects that must be identical, values that must be equal) as long as a model is unchanged."""
    modules = [model]
    for module in modules:  # the list grows meanwhile
        if module._modules:
            modules += [child for child in module._modules.values() if child is not None]
    own = [value for m in modules for name, value in vars(m).items() if name[0] != "_"]
    stores = [store for m in modules for store in (m._parameters, m._buffers) if store]
    tensors = [tensor for store in stores for tensor in store.values() if tensor is not None]
    tensors += [value for value in own if type(value) not in _NUMBERS and isinstance(value, torch.Tensor)]
    kinds = list(map(type, modules))
    # A held weak reference is its object's only one, and never equals that of a later object at the same
    # address.
    same: list[object] = [*map(weakref.ref, modules), *map(weakref.ref, tensors), *kinds, *own]
    same += [getattr(kind, "forward", None) for kind in dict.fromkeys(kinds)]
    equal: list[object] = [(_address(t), _version(t)) for t in tensors]
    # Hook keys are never used twice.
    equal += [(*m._forward_pre_hooks, *m._forward_hooks) for m in modules]
    equal += [*torch_module._global_forward_pre_hooks, *torch_module._global_forward_hooks]
    equal += [repr(getattr(model, "params", None))]
    return same, equal


def _address(tensor: torch.Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # it has no memory of its own
        return 0


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
