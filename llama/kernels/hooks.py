"""Whether calling PyTorch modules runs more than their class's forward."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules import module as torch_module

__all__ = ["hooked"]


def hooked(modules: Iterable[nn.Module]) -> bool:
    """Whether any of these modules, or all modules of the process, have a hook or a forward of their own."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return True
    for module in modules:
        own = module.__dict__
        if own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own:
            return True
    return False
