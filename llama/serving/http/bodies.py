"""Reading a request's body: limits of size and time, strict JSON, and fields that have one of three meanings.

A field is implemented (declared in the body's model), inert (accepted and without effect, because clients
send it always) or refused (an error with its name, unless its value asks for nothing). Any other field is an
error too: nothing is ignored in silence.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NoReturn, TypeVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, ValidationError, WithJsonSchema
from starlette.requests import Request

from ...printable import shown
from .problems import Problem

__all__ = ["Body", "Int", "Json", "Texts", "json_object", "parse", "read_body", "seed_of"]

Json = dict[str, Any]

B = TypeVar("B", bound="Body")


def _whole(value: Any) -> Any:
    """JavaScript and Vim may write 128 as 128.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, BeforeValidator(_whole)]
"""An integer of a body; not a bool and not a text."""

Texts = Annotated[
    list[str],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]
"""A list of texts, such as stop strings, or one text."""


class Body(BaseModel):
    """The fields that a route implements. null means that a field is not given.

    INERT: names that are accepted and change nothing. REFUSED: names that are an error, each with the values
    that ask for nothing and pass. PARTS: fields that are bodies of their own, or lists of such, read by the same rules.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    INERT: ClassVar[frozenset[str]] = frozenset()
    REFUSED: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    PARTS: ClassVar[Mapping[str, type[Body]]] = {}

    def one_of(self, *names: str) -> Any:
        """The value of fields that mean the same; None if none is given.

        Raises:
            Problem: 400; they are given with different values.
        """
        given = [(name, value) for name in names if (value := getattr(self, name)) is not None]
        if len({value for _, value in given}) > 1:
            values = " and ".join(f"{name} is {value}" for name, value in given)
            message = f"{values}; they mean the same, so give one of them"
            raise Problem(400, "invalid_request", message, given[-1][0])
        return given[0][1] if given else None

    @classmethod
    @functools.cache
    def names(cls) -> frozenset[str]:
        """Of the fields that are implemented, with their other names."""
        found = set()
        for name, field in cls.model_fields.items():
            alias = field.validation_alias
            choices = alias.choices if isinstance(alias, AliasChoices) else [alias or name]
            found |= {each for each in choices if isinstance(each, str)}
        return frozenset(found)

    @classmethod
    def schema_of_fields(cls) -> Json:
        """The JSON schema of the body, with inert and refused fields."""
        schema = cls.model_json_schema(ref_template="#/components/schemas/{model}")
        properties: Json = schema.setdefault("properties", {})
        for name, part in cls.PARTS.items():
            schema.get("$defs", {}).pop(part.__name__, None)
            inner = part.schema_of_fields()
            is_list = properties[name].get("type") == "array"
            properties[name] = {"type": "array", "items": inner} if is_list else inner
        for name in sorted(cls.INERT):
            properties[name] = {"description": "Accepted, without effect."}
        for name, neutral in sorted(cls.REFUSED.items()):
            allowed = [None, *neutral]
            properties[name] = {
                "enum": allowed,
                "description": "Not supported: only values that ask for nothing.",
            }
        return schema


async def read_body(request: Request, max_bytes: int, timeout: float) -> bytes:
    """A request's body.

    Raises:
        Problem: 413 too large, 408 too slow.
        starlette.requests.ClientDisconnect: the client left before the end.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and len(announced) < 20 and int(announced) > max_bytes:
        _too_large(max_bytes)
    data = bytearray()
    try:
        async with asyncio.timeout(timeout):
            async for chunk in request.stream():
                data += chunk
                if len(data) > max_bytes:
                    _too_large(max_bytes)
    except TimeoutError:
        raise Problem(
            408,
            "body_timeout",
            f"the body did not arrive within {timeout:g} s",
            headers={"Connection": "close"},
        ) from None
    return bytes(data)


def parse(kind: type[B], data: Json, within: str = "") -> B:
    """A body as the model of its route.

    Args:
        within: where the body stands in a larger one, such as `options.`, for the names in errors.

    Raises:
        Problem: 400 with the name of the field that is unknown, refused or of a wrong type or range.
    """
    given = {name: value for name, value in data.items() if value is not None and name not in kind.INERT}
    for name, neutral in kind.REFUSED.items():
        if name in given and not any(_same(given[name], value) for value in neutral):
            where = within + name
            raise Problem(
                400, "unsupported_field", f"{where!r} is not supported by this server; leave it out", where
            )
        given.pop(name, None)
    # Not left to pydantic, which makes an error of each of a million.
    if (unknown := next((name for name in given if name not in kind.names()), None)) is not None:
        known = ", ".join(sorted(kind.names()))
        where = within + unknown
        raise Problem(400, "unknown_field", f"unknown field {shown(where)}; known are {known}", where)
    for name, part in kind.PARTS.items():
        value = given.get(name)
        if isinstance(value, dict):
            given[name] = parse(part, value, f"{within}{name}.")
        elif isinstance(value, list):
            given[name] = [
                parse(part, each, f"{within}{name}.{i}.") if isinstance(each, dict) else each
                for i, each in enumerate(value)
            ]
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _problem(error, within) from None


def seed_of(given: int | None, bits: int = 64) -> int | None:
    """A client's seed as the engine takes it; None: draw one.

    -1 is llama.cpp's way to ask for that. Other negative seeds come from clients whose integers of `bits` bits
    are signed; they become the unsigned number of the same bits.
    """
    if given is None or given == -1:
        return None
    return given % (1 << bits) if given < 0 else given


def _same(a: Any, b: Any) -> bool:
    # 0 == False in Python, but not in JSON.
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _problem(error: ValidationError, within: str) -> Problem:
    first = error.errors(include_url=False, include_context=False)[0]
    where = within + ".".join(str(part) for part in first["loc"]) or None
    if first["type"] == "extra_forbidden":  # within a field
        return Problem(400, "unknown_field", f"unknown field {shown(where)}", where)
    message = first["msg"] if where is None else f"{where}: {first['msg']}"
    return Problem(400, "invalid_request", f"{message}, got {shown(first['input'])}", where)


def json_object(data: bytes) -> Json:
    """The JSON object in a body, whatever its Content-Type says.

    Raises:
        Problem: 400 not JSON, not UTF-8, NaN, nested too deeply, not an object.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Problem(
            400, "invalid_json", f"the body is not UTF-8: {error.reason} at byte {error.start}"
        ) from None
    try:
        value = json.loads(text, parse_constant=_no_constant)
        if "\\ud" in text or "\\uD" in text:
            # Half a surrogate pair is legal in JSON, and nothing can be done with it.
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Problem(400, "invalid_json", "the body holds a lone surrogate, which is not text") from None
    except RecursionError:
        raise Problem(400, "invalid_json", "the body is nested too deeply") from None
    except ValueError as error:
        raise Problem(400, "invalid_json", f"the body is not JSON: {shown(str(error))}") from None
    if not isinstance(value, dict):
        raise Problem(400, "invalid_json", f"the body must be a JSON object, got {type(value).__name__}")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _too_large(max_bytes: int) -> NoReturn:
    # The rest of the body is not read, so the connection cannot be used again.
    raise Problem(
        413, "body_too_large", f"the body is larger than {max_bytes:,} bytes", headers={"Connection": "close"}
    )
