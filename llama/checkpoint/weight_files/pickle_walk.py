"""Reads the pickle of a state dict without an unpickler: only names, dtypes, shapes, strides and offsets.

A pickle is a program for a small stack machine. This machine runs only the operations that torch.save uses
for a dictionary of tensors, on names and numbers. It imports nothing, calls nothing, and allocates in
proportion to the size of the pickle. This module decides what a tensor may look like; pth.py finds its bytes.
Source: the operations as documented in Python's `pickletools`, and torch.save's format of a tensor.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ...printable import shown
from .stored_tensor import Storage, StoredTensor

__all__ = ["walk"]

# The state dict of a 70B in one file takes 40,000 operations.
_MOST_OPERATIONS = 500_000
# It has 723 tensors; each becomes an object.
_MOST_TENSORS = 20_000
_MOST_DIMENSIONS = 16
_LONGEST_NAME = 200

_DTYPES = {
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.HalfStorage": torch.float16,
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
}
_ORDERED = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_PLAIN = "Only load checkpoints saved as a plain state dict"


def walk(pickled: bytes) -> dict[str, StoredTensor]:
    """The tensors of a pickled state dict, by name.

    Raises:
        ValueError: it contains or does anything else, or is damaged; the message says what, and what to do.
    """
    machine = _Machine()
    try:
        for number, (opcode, argument, at) in enumerate(pickletools.genops(pickled)):
            if number >= _MOST_OPERATIONS:
                raise _refusal(f"needs more than {_MOST_OPERATIONS:,} operations")
            machine.run(opcode.name, argument)
            end = (at or 0) + 1
    except _RefusedError:
        raise
    except (ValueError, IndexError) as error:  # from genops, or too few values on the stack
        raise _damaged(str(error)) from error
    if end != len(pickled):
        raise _damaged(f"{len(pickled) - end:,} bytes after its end")
    return _named(machine.result)


class _RefusedError(ValueError):
    """Its message is complete, and passed on as it is."""


def _refusal(what: str) -> _RefusedError:
    return _RefusedError(f"holds more than tensors and was not run: it {what}. {_PLAIN}")


def _damaged(what: str) -> _RefusedError:
    text = what.splitlines()[0][:200] if what else "its operations do not fit together"
    return _RefusedError(f"cannot be read (its data.pkl is damaged: {text}); download it again")


def _named(found: Any) -> dict[str, StoredTensor]:
    if not isinstance(found, dict):
        raise _RefusedError(f"holds {_kind(found)}, not a dictionary of named tensors")
    if len(found) > _MOST_TENSORS:
        raise _RefusedError(
            f"names {len(found):,} tensors, more than the {_MOST_TENSORS:,} that any checkpoint has"
        )
    for name, value in found.items():
        if not isinstance(value, StoredTensor):
            raise _RefusedError(
                f"holds {_kind(value)} under {shown(name)}, and is not a dictionary of named tensors"
            )
        if len(name) > _LONGEST_NAME or not name.isprintable():
            raise _RefusedError(f"names a tensor {shown(name)}, which is not the name of a weight")
    return found


def _kind(value: Any) -> str:
    return {dict: "a dictionary", StoredTensor: "a tensor", _Global: "a class or function"}.get(
        type(value), type(value).__name__
    )


@dataclass(frozen=True)
class _Global:
    """The name of a class or function. It is never looked up."""

    name: str


def _whole(value: Any) -> bool:
    return type(value) is int  # not a bool


class _Machine:
    """Stack, marks and memo of one pickle. Every operation pops and pushes plain values; none recurses."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []  # the stack below each mark
        self._memo: dict[int, Any] = {}
        self._storages: dict[str, Storage] = {}
        self.result: Any = None

    def run(self, name: str, argument: Any) -> None:
        """Run one operation.

        Raises:
            ValueError, IndexError: no state dict needs it, or it does not fit the stack.
        """
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _ARGUMENTS:
            self._stack.append(argument)
        elif name in _TUPLES:
            count = _TUPLES[name]
            if len(self._stack) < count:
                raise IndexError("too few values on the stack")
            self._stack[-count:] = [tuple(self._stack[-count:])]
        elif (step := _STEPS.get(name)) is not None:
            step(self, argument)
        else:
            raise _refusal(f"uses the operation {name}, which torch.save with its default protocol does not")

    def _proto(self, version: int) -> None:
        if version not in (2, 3):
            raise _RefusedError(
                f"is pickled with protocol {version}, which torch cannot load safely; torch.save it with its default"
            )

    def _long(self, value: int) -> None:
        if value.bit_length() > 63:
            raise ValueError(f"a number of {value.bit_length()} bits")
        self._stack.append(value)

    def _mark(self, _: None) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        taken, self._stack = self._stack, self._marks.pop()
        return taken

    def _tuple(self, _: None) -> None:
        taken = self._since_mark()
        self._stack.append(tuple(taken))

    def _put(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def _get(self, number: int) -> None:
        if number not in self._memo:
            raise ValueError(f"memo {number} is empty")
        self._stack.append(self._memo[number])

    def _global(self, name: str) -> None:
        name = name.replace(" ", ".", 1)
        if name not in (_ORDERED, _TENSOR, _PARAMETER) and name not in _DTYPES:
            raise _refusal(f"names {shown(name)}")
        self._stack.append(_Global(name))

    def _persistent(self, _: None) -> None:
        told = self._stack.pop()
        if not isinstance(told, tuple) or len(told) != 5:
            raise ValueError("a malformed storage")
        what, kind, key, place, count = told
        dtype = _DTYPES.get(kind.name) if isinstance(kind, _Global) else None
        if what != "storage" or dtype is None or not isinstance(key, str) or not isinstance(place, str):
            raise ValueError("a malformed storage")
        if not _whole(count) or count < 0:
            raise ValueError("a storage without a size")
        found = Storage(key, dtype, count)
        # torch.save refuses to write one storage as two dtypes; torch.load uses whichever comes first.
        if self._storages.setdefault(key, found) != found:
            raise ValueError(f"storage {shown(key)} has two dtypes or sizes")
        self._stack.append(found)

    def _reduce(self, _: None) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise ValueError("a call of something that is not a function")
        if function.name == _ORDERED and not arguments:
            self._stack.append({})
        elif function.name == _TENSOR:
            self._stack.append(_tensor(arguments))
        elif function.name == _PARAMETER and len(arguments) == 3 and isinstance(arguments[0], StoredTensor):
            self._stack.append(arguments[0])
        else:
            raise ValueError(f"a call of {function.name} with {len(arguments)} arguments")

    def _build(self, _: None) -> None:
        """Attributes of a state dict: `_metadata`, with the versions of its modules. They are ignored."""
        state, target = self._stack.pop(), self._stack[-1]
        if not isinstance(target, dict) or not isinstance(state, dict):
            raise _refusal(f"sets attributes of {_kind(target)}")

    def _set_item(self, _: None) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _set_items(self, _: None) -> None:
        self._set(self._since_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError(f"keys and values that do not pair up, or are set on {_kind(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Checked before it is hashed: hashing nested tuples can take forever.
            if not isinstance(key, str):
                raise _RefusedError(f"holds a key that is {_kind(key)}, not a dictionary of named tensors")
            if key in target:
                raise ValueError(f"the key {shown(key)} occurs twice")
            target[key] = value

    def _append(self, _: None) -> None:
        value = self._stack.pop()
        self._extend([value])

    def _appends(self, _: None) -> None:
        self._extend(self._since_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise ValueError(f"values appended to {_kind(target)}")
        target += values

    def _stop(self, _: None) -> None:
        self.result = self._stack.pop()
        if self._stack or self._marks:
            raise ValueError("values left on the stack")


def _tensor(arguments: tuple[Any, ...]) -> StoredTensor:
    """Arguments of _rebuild_tensor_v2: storage, offset, shape, strides, requires_grad, hooks[, metadata]."""
    if len(arguments) not in (6, 7):
        raise ValueError(f"a tensor with {len(arguments)} arguments")
    storage, offset, shape, strides, _, hooks, *metadata = arguments
    if (
        not isinstance(storage, Storage)
        or not isinstance(shape, tuple)
        or not isinstance(strides, tuple)
        or len(shape) != len(strides)
        or len(shape) > _MOST_DIMENSIONS
        or not all(map(_whole, (offset, *shape, *strides)))
    ):
        raise ValueError("a tensor with a malformed storage, shape or strides")
    marks = metadata[0] if metadata else None
    if hooks != {} or (
        marks is not None and not (isinstance(marks, dict) and not any(map(_true, marks.values())))
    ):
        raise _refusal("holds a tensor with hooks, or one that is to be negated or conjugated")
    found = StoredTensor(storage, offset, shape, strides)
    problem = found.problem()
    if problem is not None:
        raise _RefusedError(
            f"holds a tensor that {problem}; load it in torch with weights_only=True and save clones of its tensors"
        )
    return found


def _true(value: Any) -> bool:
    return value is not False


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_ARGUMENTS = frozenset({"BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine._proto,
    "LONG1": _Machine._long,
    "MARK": _Machine._mark,
    "TUPLE": _Machine._tuple,
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
    "GLOBAL": _Machine._global,
    "BINPERSID": _Machine._persistent,
    "REDUCE": _Machine._reduce,
    "BUILD": _Machine._build,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "STOP": _Machine._stop,
}
