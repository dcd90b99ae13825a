"""Text that a stranger may put into names, tensors and configs, and how it is printed."""

from __future__ import annotations

# Clears the screen, forges a line, reverses a text, breaks a line, holds NUL, half a surrogate pair, and a byte that
# is not UTF-8.
HOSTILE = "a\x1b[2J\x9b2J\rb\nerror: none\u202egpj.\u2028\x00\ud800\udce9z"
# The same, without what a file name cannot hold.
FILE_NAME = HOSTILE.replace("\x00", "").replace("\ud800", "")
ESCAPED = r"a\x1b[2J\x9b2J\rb\nerror: none\u202egpj.\u2028\xe9z"
