"""Laws of the playground's page and of the proxy: only its own files, nothing from strings, nothing kept back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath

import httpx
import pytest
from http_service import bundled, serving
from scripted_server import Script, pieces, scripted_server, served
from starlette.applications import Starlette

import llama.serving.http.playground as playground
from llama.errors import ConfigError
from llama.serving.http.playground import pages
from llama.serving.http.playground.local import serve_page
from llama.serving.http.playground.proxy import FORWARDED, MAX_BODY, base_url, make_app

STATIC = Path(playground.__file__).parent / "static"
FILES = {path.name: path.read_text(encoding="utf-8") for path in STATIC.iterdir()}
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js")}
LIMIT = 60.0  # seconds; a guard against a hang
KEY = "a-key-of-the-server"

# Every way in which JavaScript turns a string into HTML, a script or a program.
FORBIDDEN = (
    *(
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "setHTML",
        "document.write",
        "createContextualFragment",
    ),
    *(
        "DOMParser",
        "srcdoc",
        "eval(",
        "new Function",
        "importScripts",
        "javascript:",
        "style=",
        "setTimeout(",
    ),
)


class Page(HTMLParser):
    """Tags and attributes of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def page() -> Iterator[httpx.Client]:
    with served(Starlette(routes=pages.routes())) as url, httpx.Client(base_url=url, timeout=LIMIT) as client:
        yield client


@pytest.fixture(scope="module")
def peer() -> Iterator[tuple[Script, httpx.Client]]:
    """A server, and a client of the proxy in front of it."""
    with scripted_server() as script:
        app = make_app(base_url(script.url), key=KEY)
        with served(app) as url, httpx.Client(base_url=url, timeout=LIMIT) as client:
            yield script, client


@pytest.fixture
def script(peer: tuple[Script, httpx.Client]) -> Script:
    peer[0].reset()
    return peer[0]


@pytest.fixture
def proxy(peer: tuple[Script, httpx.Client]) -> httpx.Client:
    return peer[1]


# The files


@pytest.mark.parametrize("name", sorted(FILES))
def test_each_file_is_served_as_what_it_is(page: httpx.Client, name: str) -> None:
    answer = page.get(f"/playground/{name}")
    kinds = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
    assert answer.status_code == 200
    assert answer.text == FILES[name]
    assert answer.headers["content-type"].partition(";")[0] == kinds[PurePosixPath(name).suffix]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_is_at_the_root(page: httpx.Client) -> None:
    answer = page.get("/")
    assert answer.text == FILES["index.html"]
    assert page.head("/").status_code == 200
    assert page.post("/").status_code == 405


@pytest.mark.parametrize("path", ["/", "/playground/app.js", "/playground/nothing", "/playground/config"])
def test_every_answer_allows_its_own_files_alone(page: httpx.Client, path: str) -> None:
    policy = dict(
        each.strip().partition(" ")[::2]
        for each in page.get(path).headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["trusted-types"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in str(policy)
    assert not [name for name in policy if name.endswith("-src") and policy[name] not in ("'self'", "'none'")]


def test_a_browser_that_has_a_file_gets_it_only_if_it_has_changed(page: httpx.Client) -> None:
    first = page.get("/playground/app.js")
    again = page.get("/playground/app.js", headers={"If-None-Match": f'"old", W/{first.headers["etag"]}'})
    assert first.headers["cache-control"] == "no-cache"
    assert (again.status_code, again.content) == (304, b"")
    other = page.get("/playground/app.js", headers={"If-None-Match": page.get("/").headers["etag"]})
    assert (other.status_code, other.text) == (200, first.text)


@pytest.mark.parametrize(
    "name",
    ["", "nothing.js", "../pages.py", "..%2fpages.py", "%2e%2e%2fpages.py", "static/app.js", "app.js%00"],
)
def test_no_other_file_is_there(page: httpx.Client, name: str) -> None:
    assert page.get(f"/playground/{name}").status_code == 404


def test_the_page_is_told_where_the_server_is(
    page: httpx.Client, proxy: httpx.Client, script: Script
) -> None:
    assert page.get("/playground/config").json() == {"server": None}
    assert proxy.get("/playground/config").json() == {"server": script.url}


# What is in them


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_no_string_becomes_html_or_code(name: str) -> None:
    text = re.sub(r"setTimeout\((?=\(|\w+[,)])", "", SCRIPTS[name])  # given a function
    assert [word for word in FORBIDDEN if word in text] == []


def test_the_page_holds_no_script_or_style_of_its_own() -> None:
    page = Page(FILES["index.html"])
    assert [attributes for tag, attributes in page.tags if tag == "script" and "src" not in attributes] == []
    assert [
        tag for tag, _ in page.tags if tag in ("style", "iframe", "object", "embed", "base", "form")
    ] == []
    handlers = [
        name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "style"
    ]
    assert handlers == []


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_other_host_is_named(name: str) -> None:
    assert set(re.findall(r"(?:https?:)?//[\w-]+\.[\w.-]+", FILES[name])) <= {"http://www.w3.org"}
    assert "@import" not in FILES[name]


def test_every_file_is_asked_for_and_every_file_that_is_asked_for_is_there() -> None:
    """From the page through the modules' imports."""
    asked = set(re.findall(r'(?:href|src)="playground/([\w.]+)"', FILES["index.html"]))
    todo = [*asked]
    while todo:
        found = re.findall(r'^(?:import|export) [^;]*?from "\./([\w.]+)";', FILES[todo.pop()], re.M)
        todo += [name for name in found if name not in asked]
        asked.update(found)
    assert asked | {"index.html"} == set(FILES)


def test_labels_name_what_is_there() -> None:
    page = Page(FILES["index.html"])
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for name in ("for", "aria-controls", "aria-labelledby"):
        assert {attributes[name] for _, attributes in page.tags if name in attributes} <= set(ids)
    used = {found for text in SCRIPTS.values() for found in re.findall(r'byId\("([\w-]+)"\)', text)}
    made = {found for text in SCRIPTS.values() for found in re.findall(r'\bid: "([\w-]+)"', text)}
    assert used <= {*ids, *made}


# The proxy


def ask(proxy: httpx.Client, **more: object) -> httpx.Response:
    return proxy.post("/v1/completions", json={"prompt": "x", "stream": True, **more})


def test_a_stream_passes_piece_by_piece(proxy: httpx.Client, script: Script) -> None:
    """The first token is there while the server still holds the second back."""
    script.answer, script.hold_after = "one two three", 1
    with proxy.stream("POST", "/v1/completions", json={"prompt": "x", "stream": True}) as answer:
        lines = (line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: "))
        assert json.loads(next(lines))["choices"][0]["text"] == "one"
        script.go_on.set()
        *rest, done = lines
    texts = [json.loads(line)["choices"][0]["text"] for line in rest if json.loads(line)["choices"]]
    assert "".join(texts) == " two three"
    assert done == "[DONE]"


def test_the_key_is_added_here_and_the_rest_of_the_browser_stays_out(
    proxy: httpx.Client, script: Script
) -> None:
    script.key = KEY
    headers = {"Origin": str(proxy.base_url).rstrip("/"), "Cookie": "a=b", "Authorization": "Bearer other"}
    answer = proxy.post("/v1/completions", json={"prompt": "x"}, headers={**headers, "X-Api-Key": "other"})
    assert answer.status_code == 200
    ((path, seen, body),) = script.requests
    assert (path, body) == ("/v1/completions", {"prompt": "x"})
    assert seen["authorization"] == f"Bearer {KEY}"
    assert seen["host"] == script.url.removeprefix("http://")
    assert {"origin", "cookie", "x-api-key"} & set(seen) == set()


def test_without_a_key_the_pages_own_is_handed_on(script: Script) -> None:
    script.key = "typed"
    with served(make_app(base_url(script.url))) as url:
        answer = httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer typed"}, timeout=LIMIT)
    assert answer.json()["data"][0]["id"] == "scripted-7b"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/metrics", 404),
        ("POST", "/v1/embeddings", 404),
        ("POST", "/infill", 404),
        ("GET", "/v1/models/x", 404),
        ("GET", "/docs", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
    ],
)
def test_other_paths_are_not_handed_on(
    proxy: httpx.Client, script: Script, method: str, path: str, status: int
) -> None:
    assert proxy.request(method, path).status_code == status
    assert script.requests == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "[::1"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://localhost:1"},
        {"Origin": "null"},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", FORWARDED)
def test_pages_of_other_sites_are_refused(
    proxy: httpx.Client, script: Script, path: str, headers: dict[str, str]
) -> None:
    answer = proxy.request(FORWARDED[path], path, headers=headers, content=b"{}")
    assert answer.status_code == 403
    assert answer.json()["error"]["message"]
    assert script.requests == []


def test_a_host_that_was_allowed_may_ask(script: Script) -> None:
    with served(make_app(base_url(script.url), allowed_hosts=("box.example",))) as url:
        for name, status in (("box.example", 200), ("localhost", 200), ("other.example", 403)):
            answer = httpx.get(f"{url}/v1/models", headers={"Host": f"{name}:6006"}, timeout=LIMIT)
            assert answer.status_code == status, name


def test_a_caller_that_leaves_takes_its_request_along(proxy: httpx.Client, script: Script) -> None:
    script.answer, script.hold_after = "one two three", 1
    with proxy.stream("POST", "/v1/completions", json={"prompt": "x", "stream": True}) as answer:
        next(answer.iter_raw())
    assert script.left.wait(LIMIT)


def test_errors_of_the_server_pass_as_they_are(proxy: httpx.Client, script: Script) -> None:
    script.refuse = (400, "top_k is -3")
    answer = ask(proxy)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "top_k is -3"


def test_a_server_that_is_gone_is_said_to_be(script: Script) -> None:
    with scripted_server() as gone:
        pass
    with served(make_app(base_url(gone.url))) as url:
        answer = httpx.get(f"{url}/v1/models", timeout=LIMIT)
    assert answer.status_code == 502
    assert gone.url in answer.json()["error"]["message"]


def test_a_stream_that_breaks_off_ends_with_an_event_that_says_so(
    proxy: httpx.Client, script: Script
) -> None:
    script.answer, script.break_after = "one two three", 1
    *_, text, last = [line for line in ask(proxy).text.split("\n\n") if line]
    assert json.loads(text.removeprefix("data: "))["choices"][0]["text"] == "one"
    assert "lost" in json.loads(last.removeprefix("data: "))["error"]["message"]


def test_a_body_that_is_too_large_is_not_handed_on(proxy: httpx.Client, script: Script) -> None:
    answer = ask(proxy, prompt="x" * MAX_BODY)
    assert answer.status_code == 413
    assert f"{MAX_BODY:,}" in answer.json()["error"]["message"]
    assert script.requests == []


# Where the server is


@pytest.mark.parametrize(
    ("text", "models"),
    [
        ("localhost:8000", "http://localhost:8000/v1/models"),
        ("http://localhost:8000/", "http://localhost:8000/v1/models"),
        ("http://localhost:8000/v1", "http://localhost:8000/v1/models"),
        ("https://box.example/code/v1/", "https://box.example/code/v1/models"),
        ("http://[::1]:8000", "http://[::1]:8000/v1/models"),
    ],
)
def test_an_address_is_taken_as_people_write_it(text: str, models: str) -> None:
    assert f"{str(base_url(text)).rstrip('/')}/v1/models" == models


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ftp://x",
        "http://",
        "http://user:secret@x",
        "http://user:secret@x:port",
        "http://x/?a=b",
        "http://x:port",
        "http://x/#y",
        "a b",
    ],
)
def test_what_is_no_address_is_refused_without_showing_a_password(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        base_url(text)
    assert "secret" not in str(refused.value)


def test_a_port_that_is_taken_is_a_named_error(script: Script) -> None:
    port = int(script.url.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"port {port}"):
        serve_page("localhost:1", port=port)
    with pytest.raises(ConfigError, match="65,535"):
        serve_page("localhost:1", port=65536)


def test_a_script_is_its_tokens() -> None:
    """Of the helper: what other tests take for the model's text."""
    text = "def f(x):\n    return x  # ok\n"
    assert "".join(pieces(text)) == text


# Of `codellama serve`


def test_serve_shows_the_page_to_whoever_comes_and_answers_those_with_a_key() -> None:
    with bundled() as llama, serving(llama, playground=True, api_keys=(KEY,)) as server:
        assert server.client.get("/").text == FILES["index.html"]
        assert server.client.get("/playground/app.js").text == FILES["app.js"]
        assert server.client.get("/playground/config").json() == {"server": None}
        assert server.client.get("/v1/models").status_code == 401
        keyed = {"Authorization": f"Bearer {KEY}"}
        assert server.post("/", {"inputs": "def"}, headers=keyed).status_code == 200  # another protocol's
        assert "/playground/{name}" not in server.client.get("/openapi.json", headers=keyed).json()["paths"]
