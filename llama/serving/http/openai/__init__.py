"""OpenAI's protocol: completions, chat, models; and vLLM's /tokenizer_info, for clients without a tokenizer."""

from . import chat, completions, models
from .shapes import FAMILY

__all__ = ["FAMILY", "ROUTES"]

ROUTES = (*completions.ROUTES, *chat.ROUTES, *models.ROUTES)
