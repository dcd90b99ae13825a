"""Ollama's protocol: generate, chat, and what it tells of models."""

from . import generate, models
from .generate import FAMILY

__all__ = ["FAMILY", "ROUTES"]

ROUTES = (*generate.ROUTES, *models.ROUTES)
