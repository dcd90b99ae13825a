"""LoRA adapters in PEFT's folders, merged into the weights of any checkpoint while they are read."""

from .adapted import AdaptedCheckpoint, adapter_of, with_adapter

__all__ = ["AdaptedCheckpoint", "adapter_of", "with_adapter"]
