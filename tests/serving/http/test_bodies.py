"""Reading bodies: strict JSON within limits, and fields of three kinds."""

from __future__ import annotations

import asyncio
import json
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field
from starlette.requests import ClientDisconnect, Request

from llama.serving.http.bodies import Body, Int, json_object, parse, read_body
from llama.serving.http.problems import Problem

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


class Sample(Body):
    """A body for these tests."""

    INERT = frozenset({"user"})
    REFUSED: ClassVar[dict[str, tuple[Any, ...]]] = {"tools": ([],), "watermark": (False,), "typical_p": (1,)}
    prompt: str
    n: Int = 1
    top_p: float = 1.0
    stop: str | list[str] = Field(default_factory=list)
    stream: bool = False


def read(
    data: bytes | list[bytes], headers: dict[str, str] | None = None, limit: int = 1000, end: str = "body"
) -> Any:
    """What is made of a body that comes in these parts and then, by `end`, stops."""
    parts = [data] if isinstance(data, bytes) else data
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    if end == "body":
        messages.append({"type": "http.request", "body": b"", "more_body": False})
    elif end == "gone":
        messages.append({"type": "http.disconnect"})

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        return await asyncio.Event().wait()

    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    request = Request({"type": "http", "method": "POST", "headers": raw}, receive)
    return json_object(asyncio.run(read_body(request, limit, 0.05 if end == "silence" else 60)))


def refused(*args: Any, **more: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        read(*args, **more)
    return caught.value


@settings(max_examples=40)
@given(st.dictionaries(st.text(), values), st.integers(1, 9))
def test_json_comes_back_in_whatever_parts_and_type_it_is_sent(value: dict[str, Any], size: int) -> None:
    data = json.dumps(value).encode()
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    assert read(parts, {"content-type": "application/x-www-form-urlencoded"}, 10**6) == value


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a":1}{"a":2}', "not JSON"),
        (b'{"a":NaN}', "NaN is not a JSON number"),
        (b'{"a":-Infinity}', "-Infinity is not a JSON number"),
        (b'{"a":"\xff"}', "not UTF-8: invalid start byte at byte 6"),
        (b'{"a":"\\ud800"}', "lone surrogate"),
        (b'{"\\uDC00":1}', "lone surrogate"),
        (b"[1]", "must be a JSON object, got list"),
        (b'"a"', "must be a JSON object, got str"),
        (b"null", "must be a JSON object, got NoneType"),
        (b'{"a":' + b"[" * 400_000 + b"]" * 400_000 + b"}", "nested too deeply"),
        (b'{"a":' + b"9" * 10_000 + b"}", "not JSON"),
    ],
)
def test_what_is_no_json_object_is_400(data: bytes, says: str) -> None:
    problem = refused(data, limit=10**6)
    assert (problem.status, problem.code) == (400, "invalid_json")
    assert says in problem.message


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert read(b'{"a":"\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_a_body_that_is_too_large_is_refused_as_soon_as_that_is_known() -> None:
    for problem in (
        refused(b"", {"content-length": "1001"}, end="silence"),  # announced: nothing is waited for
        refused([b"x" * 600, b"x" * 600], end="silence"),  # not announced, or wrongly
        refused([b"x" * 1200], {"content-length": "3"}, end="silence"),
    ):
        assert (problem.status, problem.code) == (413, "body_too_large")
        assert "1,000 bytes" in problem.message
        assert problem.headers == {"Connection": "close"}
    assert read(b'{"a":"' + b"x" * 992 + b'"}')  # exactly as large as it may be


def test_a_body_that_stops_coming_is_408_and_a_client_that_leaves_is_no_answer() -> None:
    problem = refused([b'{"a"'], end="silence")
    assert (problem.status, problem.code) == (408, "body_timeout")
    with pytest.raises(ClientDisconnect):
        read([b'{"a"'], end="gone")


def test_null_is_not_given_and_inert_fields_are_dropped() -> None:
    body = parse(Sample, {"prompt": "x", "n": None, "user": {"deep": [1]}, "tools": None, "top_p": None})
    assert (body.prompt, body.n, body.top_p) == ("x", 1, 1.0)


@pytest.mark.parametrize(
    "neutral", [{"tools": []}, {"watermark": False}, {"typical_p": 1}, {"typical_p": 1.0}]
)
def test_a_refused_field_passes_where_it_asks_for_nothing(neutral: dict[str, Any]) -> None:
    assert parse(Sample, {"prompt": "x", **neutral}).prompt == "x"


@pytest.mark.parametrize(
    ("given", "code", "param"),
    [
        ({"tools": [{"type": "function"}]}, "unsupported_field", "tools"),
        ({"watermark": True}, "unsupported_field", "watermark"),
        ({"watermark": 0}, "unsupported_field", "watermark"),  # 0 is not false
        ({"promt": "x"}, "unknown_field", "promt"),
        ({"prompt": 7}, "invalid_request", "prompt"),
        ({"n": "1"}, "invalid_request", "n"),
        ({"n": True}, "invalid_request", "n"),
        ({"n": 1.5}, "invalid_request", "n"),
        ({"top_p": "1"}, "invalid_request", "top_p"),
        ({"top_p": 1e999}, "invalid_request", "top_p"),
        ({"stop": ["a", 1]}, "invalid_request", "stop.list[str].1"),
        ({"stream": "true"}, "invalid_request", "stream"),
    ],
)
def test_other_fields_are_400_with_their_name(given: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(Problem) as caught:
        parse(Sample, {"prompt": "x", **given})
    problem = caught.value
    assert (problem.status, problem.code) == (400, code)
    assert problem.param is not None
    assert problem.param.startswith(param.partition(".")[0])
    assert param.partition(".")[0] in problem.message


def test_whole_floats_are_integers() -> None:
    assert parse(Sample, {"prompt": "x", "n": 128.0}).n == 128


def test_the_schema_tells_all_three_kinds_of_fields() -> None:
    schema = Sample.schema_of_fields()
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == {
        "prompt",
        "n",
        "top_p",
        "stop",
        "stream",
        "user",
        "tools",
        "watermark",
        "typical_p",
    }
    assert schema["properties"]["tools"]["enum"] == [None, []]


class Whole(Body):
    """A body with parts."""

    PARTS: ClassVar[dict[str, type[Body]]] = {"options": Sample, "samples": Sample}
    options: Sample | None = None
    samples: list[Sample] = Field(default_factory=list)


def test_parts_are_read_by_the_same_rules() -> None:
    """Inert and refused fields, nulls; one part, or a list of them."""
    part = {"prompt": "a", "user": "me", "tools": [], "n": 2.0, "stop": None}
    body = parse(Whole, {"options": part, "samples": [part, part]})
    assert body.options == Sample(prompt="a", n=2)
    assert body.samples == [body.options, body.options]


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"options": {"prompt": "a", "tools": ["b"]}}, "options.tools"),
        ({"options": {"prompt": "a", "best": 1}}, "options.best"),
        ({"options": {}}, "options.prompt"),
        ({"options": 3}, "options"),
        ({"samples": [{"prompt": "a"}, {"prompt": "a", "watermark": True}]}, "samples.1.watermark"),
        ({"samples": ["a"]}, "samples.0"),
    ],
)
def test_an_error_in_a_part_names_its_place(data: dict[str, Any], named: str) -> None:
    with pytest.raises(Problem) as caught:
        parse(Whole, data)
    assert caught.value.param == named
    assert named in caught.value.message


def test_the_schema_holds_the_parts() -> None:
    schema = Whole.schema_of_fields()
    assert schema["properties"]["options"] == Sample.schema_of_fields()
    assert schema["properties"]["samples"] == {"type": "array", "items": Sample.schema_of_fields()}
    assert "Sample" not in schema.get("$defs", {})
