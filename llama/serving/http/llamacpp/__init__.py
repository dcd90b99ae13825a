"""llama.cpp's protocol, as llama.vim and llama.vscode use it: completion, infilling, tokens, properties."""

from . import completion, props, tokens
from .shapes import FAMILY

__all__ = ["FAMILY", "ROUTES"]

ROUTES = (*completion.ROUTES, *tokens.ROUTES, *props.ROUTES)
