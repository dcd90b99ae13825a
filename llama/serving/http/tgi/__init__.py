"""The protocol of text-generation-inference, Hugging Face's server."""

from .generate import FAMILY, ROUTES

__all__ = ["FAMILY", "ROUTES"]
