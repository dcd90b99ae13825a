"""Text that a stranger may put into names, tensors and configs, and what a terminal may see of it."""

from __future__ import annotations

# Clears a screen, forges a line, turns a text around, ends nothing, is half a pair, is a byte that is no UTF-8.
HOSTILE = "a\x1b[2J\x9b2J\rb\nerror: none\u202egpj.\u2028\x00\ud800\udce9z"
# The same, as far as a file's name can hold it.
FILE_NAME = HOSTILE.replace("\x00", "").replace("\ud800", "")
ESCAPED = r"a\x1b[2J\x9b2J\rb\nerror: none\u202egpj.\u2028\xe9z"
