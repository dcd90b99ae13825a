"""Mutants of the playground's page and of its proxy."""

from __future__ import annotations

from mutant import Mutant

__all__ = ["MUTANTS"]

_ROOM = "llama/serving/http/playground"
_TESTS = "tests/serving/http/test_playground.py"

MUTANTS = [
    Mutant(
        name="the page's key goes to the server beside ours",
        file=f"{_ROOM}/proxy.py",
        old='headers.pop("x-api-key", None)',
        new="pass",
        tests=(f"{_TESTS}::test_the_key_is_added_here_and_the_rest_of_the_browser_stays_out",),
    ),
    Mutant(
        name="the browser's cookies go to the server",
        file=f"{_ROOM}/proxy.py",
        old='_REQUEST_HEADERS = ("accept",',
        new='_REQUEST_HEADERS = ("accept", "cookie",',
        tests=(f"{_TESTS}::test_the_key_is_added_here_and_the_rest_of_the_browser_stays_out",),
    ),
    Mutant(
        name="pages of other sites use the proxy",
        file=f"{_ROOM}/proxy.py",
        old="urlsplit(origin).netloc != host:",
        new="urlsplit(origin).netloc == host:",
        tests=(f"{_TESTS}::test_pages_of_other_sites_are_refused",),
    ),
    Mutant(
        name="any name is a host of the proxy",
        file=f"{_ROOM}/proxy.py",
        old="if not host_is_allowed(host, self.host, self.allowed_hosts):",
        new="if False:",
        tests=(f"{_TESTS}::test_pages_of_other_sites_are_refused",),
    ),
    Mutant(
        name="a stream is handed on when it is whole",
        file=f"{_ROOM}/proxy.py",
        old="async for piece in answer.aiter_raw():",
        new="for piece in [await answer.aread()]:",
        tests=(f"{_TESTS}::test_a_stream_passes_piece_by_piece",),
    ),
    Mutant(
        name="a caller that leaves lets its request run on",
        file=f"{_ROOM}/proxy.py",
        old="await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)",
        new="await asyncio.wait((answer,))",
        tests=(f"{_TESTS}::test_a_caller_that_leaves_takes_its_request_along",),
    ),
    Mutant(
        name="a stream that breaks off just ends",
        file=f"{_ROOM}/proxy.py",
        old='broken = f"\\n\\ndata: {json.dumps(_problem(message, 502))}\\n\\n".encode()',
        new="broken = message[:0].encode()",
        tests=(f"{_TESTS}::test_a_stream_that_breaks_off_ends_with_an_event_that_says_so",),
    ),
    Mutant(
        name="a body of any size is handed on",
        file=f"{_ROOM}/proxy.py",
        old="if len(body) > MAX_BODY:",
        new="if len(body) > MAX_BODY * MAX_BODY:",
        tests=(f"{_TESTS}::test_a_body_that_is_too_large_is_not_handed_on",),
    ),
    Mutant(
        name="an error shows the password of an address",
        file=f"{_ROOM}/proxy.py",
        old='bare = shown(text.rpartition("@")[2])',
        new="bare = shown(text)",
        tests=(f"{_TESTS}::test_what_is_no_address_is_refused_without_showing_a_password",),
    ),
    Mutant(
        name="the page may load from other hosts",
        file=f"{_ROOM}/pages.py",
        old="\"default-src 'self'\",",
        new="\"default-src 'self' https:\",",
        tests=(f"{_TESTS}::test_every_answer_allows_its_own_files_alone",),
    ),
    Mutant(
        name="any tag is taken for the file's own",
        file=f"{_ROOM}/pages.py",
        old='if self.headers["ETag"] in known:',
        new="if known != ['']:",
        tests=(f"{_TESTS}::test_a_browser_that_has_a_file_gets_it_only_if_it_has_changed",),
    ),
    Mutant(
        name="a module writes HTML",
        file=f"{_ROOM}/static/dom.js",
        old='byId("announcer").textContent = text;',
        new='byId("announcer").innerHTML = text;',
        tests=(f"{_TESTS}::test_no_string_becomes_html_or_code",),
    ),
    Mutant(
        name="a module is taken from another host",
        file=f"{_ROOM}/static/app.js",
        old='import { Chat } from "./chat.js";',
        new='import { Chat } from "https://cdn.example/chat.js";',
        tests=(f"{_TESTS}::test_no_other_host_is_named",),
    ),
]
