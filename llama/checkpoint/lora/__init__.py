"""LoRA adapters in PEFT's folders, merged into the weights of any checkpoint while they are read."""

from .adapted import AdaptedCheckpoint, adapted

__all__ = ["AdaptedCheckpoint", "adapted"]
