"""Who is let in: keys, hosts, origins; and what every answer carries."""

from __future__ import annotations

import http.client
import json
import re
from typing import Any, NamedTuple

import pytest
from http_service import LIMIT, bundled, serving

KEYS = ("first-key", "zw\u00f6lf")
PAGE = "https://example.org"


@pytest.fixture(scope="module")
def server():
    settings = {"api_keys": KEYS, "allowed_hosts": ("Box.example",), "cors_origins": (PAGE,)}
    with bundled() as llama, serving(llama, **settings) as served:
        yield served


@pytest.fixture(scope="module")
def key() -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[0]}"}


BODY = {"prompt": "x", "max_tokens": 1}


class Answer(NamedTuple):
    status_code: int
    headers: http.client.HTTPMessage
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


def ask(server, method: str, path: str, headers: dict[str, str], body: object = None) -> Answer:
    """A request with exactly these headers, which httpx would correct."""
    connection = http.client.HTTPConnection(*server.address, timeout=LIMIT)
    data = b"" if body is None else json.dumps(body).encode()
    connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in {"Content-Length": str(len(data)), **headers}.items():
        connection.putheader(name, value.encode())
    connection.endheaders(data)
    answer = connection.getresponse()
    found = Answer(answer.status, answer.headers, answer.read().decode())
    connection.close()
    return found


def complete(server, headers: dict[str, str]) -> Answer:
    return ask(server, "POST", "/v1/completions", headers, BODY)


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer first-key"},
        {"authorization": "bearer first-key"},
        {"X-Api-Key": "first-key"},
        {"Authorization": "Bearer ", "X-Api-Key": "first-key"},
    ],
)
def test_any_key_in_either_header_opens(server, headers) -> None:
    assert complete(server, headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "first-key"},
        {"Authorization": "Basic first-key"},
        {"Authorization": "Bearer first-ke"},
        {"Authorization": "Bearer first-key2"},
        {"X-Api-Key": ""},
        {"X-Api-Key": "FIRST-KEY"},
    ],
)
def test_without_a_key_nothing_is_run_and_the_answer_is_401(server, headers) -> None:
    for method, path in (
        ("POST", "/v1/completions"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/nope"),
    ):
        answer = ask(server, method, path, headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "unauthorized"


def test_probes_need_no_key(server) -> None:
    assert server.client.get("/health").json() == {"status": "ok"}
    assert server.client.get("/v1/health").status_code == 200
    head = server.client.head("/health")
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "127.0.0.1",
        "127.3.2.1:9",
        "[::1]:80",
        "box.example",
        "a.localhost",
        "localhost.",
    ],
)
def test_names_of_this_machine_and_allowed_ones_are_hosts(server, key, host) -> None:
    assert ask(server, "GET", "/v1/models", {"Host": host, **key}).status_code in (200, 404)
    assert ask(server, "GET", "/metrics", {"Host": host, **key}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "box.example.evil", "localhost.evil", "10.0.0.1", "127.0.0.1.evil", "::1", "[evil"],
)
def test_another_host_is_403_even_with_a_key(server, key, host) -> None:
    answer = ask(server, "GET", "/metrics", {"Host": host, **key})
    assert answer.status_code == 403
    assert "--allowed-hosts" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://localhost:1",
        "file://",
        f"{PAGE}:8443",
        "https://",
        "http://[",
        "",
    ],
)
def test_a_page_of_another_origin_is_403(server, key, origin) -> None:
    answer = complete(server, {"Origin": origin, **key})
    assert answer.status_code == 403
    assert "--cors-origin" in answer.json()["error"]["message"]
    assert "access-control-allow-origin" not in answer.headers


def test_a_page_of_this_server_or_of_an_allowed_origin_may_call(server, key) -> None:
    answer = complete(server, {"Origin": server.url, **key})
    assert answer.status_code == 200
    answer = complete(server, {"Origin": PAGE, **key})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    asked = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    answer = ask(server, "OPTIONS", "/v1/completions", asked)
    assert answer.status_code == 200
    assert "authorization" in answer.headers["access-control-allow-headers"]


def test_every_answer_has_an_id_the_callers_own_if_it_is_one(server, key) -> None:
    for path in ("/metrics", "/nope"):
        assert ask(server, "GET", path, {"X-Request-Id": "mine-1", **key}).headers["x-request-id"] == "mine-1"
    ids = {
        ask(server, "GET", "/health", {"X-Request-Id": given}).headers["x-request-id"]
        for given in ("", "a b", "x" * 129)
    }
    assert len(ids) == 3
    assert all(re.fullmatch(r"req-[0-9a-f]{16}", each) for each in ids)


def test_unknown_paths_and_methods_are_told_in_the_familys_shape(server, key) -> None:
    answer = ask(server, "GET", "/v1/nope", key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    answer = ask(server, "GET", "/v1/completions", key)
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


def test_metrics_count_answers_by_route_and_never_by_a_strangers_path(server, key) -> None:
    for name in ("a", "b"):
        ask(server, "GET", f"/{name}-made-up", key)
    text = ask(server, "GET", "/metrics", key).text
    assert "made-up" not in text
    assert 'llama_http_requests_total{path="/v1/completions",status="200"}' in text
    assert 'llama_http_requests_total{path="unknown",status="404"}' in text


def test_a_key_need_not_be_ascii(server) -> None:
    assert complete(server, {"Authorization": f"Bearer {KEYS[1]}"}).status_code == 200
    assert complete(server, {"Authorization": f"Bearer {KEYS[1]}x"}).status_code == 401
