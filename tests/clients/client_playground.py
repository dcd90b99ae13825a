"""The playground in a browser: type, run, stop, infill, chat; a model's text stays text; what fails is said.

Most tests have a server whose answers they write; the last ones ask the real one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from asked import COMPLETION, PREFIX, SUFFIX
from browser_page import Page, chromium
from playground_server import Scripted, playground_program
from selenium.webdriver import Keys

EDITOR, INFILL, DRAFT = "#completion-text", "#infilling-text", "#chat-draft"
HOSTILE = "<img src=x onerror='window.broken=1'><script>window.broken=1</script>&amp;</textarea>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("chromium, with chromedriver, is not on this machine")
    with chromium() as driver:
        yield Page(driver)


@pytest.fixture(scope="module")
def peer() -> Iterator[Scripted]:
    peer = Scripted()
    yield peer
    peer.kill()


@pytest.fixture
def page(browser: Page, peer: Scripted) -> Iterator[Page]:
    """The page, as on a first visit. Whatever a test does there, it asks nobody but the server."""
    peer.script()
    browser.hosts(), browser.complaints()
    browser.open(peer.url)
    yield browser
    assert browser.hosts() == {urlsplit(peer.url).netloc}
    assert browser.complaints() == []


# Completion


def test_what_is_typed_is_continued(page: Page, peer: Scripted) -> None:
    peer.script(answer="    return x + 1\n")
    page.type(EDITOR, "def next(x):\n")
    page.run()
    assert page.text(EDITOR) == page.drawn("completion") == "def next(x):\n    return x + 1\n"
    (request,) = peer.requests
    assert request["prompt"] == "def next(x):\n"
    assert (request["temperature"], request["max_tokens"]) == (0.2, 256)
    assert "suffix" not in request
    stats = page.text("#stats")
    assert "complete" in stats
    assert "prompt 7" in stats
    assert "first after" in stats


def test_text_streams_and_escape_stops_it(page: Page, peer: Scripted) -> None:
    """What has come is there while the server holds the rest, and stays; the server is told at once."""
    peer.script(answer="one two three", hold_after=2)
    page.type(EDITOR, "zero ")
    page.press(Keys.CONTROL, Keys.ENTER)
    page.wait(lambda: page.text(EDITOR) == "zero one two")
    assert page.text("#run-label") == "Stop"
    page.press(Keys.ESCAPE)
    page.finished()
    page.wait(lambda: peer.left)
    assert page.text(EDITOR) == "zero one two"
    assert "stopped" in page.text("#stats")
    page.find(EDITOR).send_keys("!")
    assert page.text(EDITOR) == "zero one two!"


def test_the_stop_button_stops(page: Page, peer: Scripted) -> None:
    peer.script(answer="one two three", hold_after=1)
    page.find("#run").click()
    page.wait(lambda: page.text(EDITOR).endswith("one"))
    page.find("#run").click()
    page.wait(lambda: peer.left)
    assert page.text("#run-label") == "Run"


def test_the_controls_are_what_is_asked_for(page: Page, peer: Scripted) -> None:
    for name, value in {"temperature": "1.5", "top_p": "0.5", "top_k": "7", "max_tokens": "3"}.items():
        page.type(f"#sampling-{name}", value)
    page.type("#sampling-seed", "12x3")
    page.type("#sampling-stop", "\\n\\n\nEND")
    page.type("#alternatives", "2")
    page.run()
    (request,) = peer.requests
    expected = {"temperature": 1.5, "top_p": 0.5, "top_k": 7, "max_tokens": 3, "seed": 123, "logprobs": 2}
    assert {name: request[name] for name in expected} == expected
    assert request["stop"] == ["\n\n", "END"]
    page.find("#probabilities").click()
    page.type("#sampling-temperature", "0")
    page.run()
    request = peer.requests[1]
    assert request["temperature"] == 0
    assert {"logprobs", "top_p", "top_k"} & set(request) == set()


def test_a_token_shows_its_probability_and_its_alternatives(page: Page, peer: Scripted) -> None:
    peer.script(answer="one two three")
    page.run()
    first, second, third = page.all("#panel-completion [data-token]")
    assert [each.text.strip() for each in (first, second, third)] == ["one", "two", "three"]
    assert [each.get_attribute("class").split()[-1] for each in (first, second, third)] == ["p0", "p1", "p0"]
    page.hover(second)
    page.wait(lambda: "62.0 %" in page.text("#inspector"))
    assert len(page.all("#inspector li")) == 5
    assert page.find("#inspector .chosen code").text == "·two"


def test_tokens_are_reached_by_the_keyboard_and_an_alternative_goes_on(page: Page, peer: Scripted) -> None:
    peer.script(answer="one two three")
    page.type(EDITOR, "zero ")
    page.run()
    page.find(EDITOR).send_keys(*[Keys.ARROW_LEFT] * len("wo three"))
    page.wait(lambda: page.find("#inspector").is_displayed())
    assert "two" in page.text("#announcer")
    peer.script(answer=" four")
    page.press(Keys.ALT, Keys.ARROW_DOWN)
    page.press(Keys.ENTER)
    page.wait(lambda: page.text(EDITOR) == "zero one other0 four")
    page.finished()
    assert peer.requests[0]["prompt"] == "zero one other0"
    page.find(EDITOR).send_keys(Keys.CONTROL, "z")
    assert page.text(EDITOR) == "zero one two three"


def test_undo_goes_back_over_typing_and_answers(page: Page, peer: Scripted) -> None:
    peer.script(answer="B")
    page.type(EDITOR, "A")
    page.run()
    page.find(EDITOR).send_keys("C")
    texts = []
    for _ in range(3):
        texts.append(page.text(EDITOR))
        page.find(EDITOR).send_keys(Keys.CONTROL, "z")
    assert texts == ["ABC", "AB", "A"]
    page.find(EDITOR).send_keys(Keys.CONTROL, "y")
    page.find(EDITOR).send_keys(Keys.CONTROL, Keys.SHIFT, "z")
    assert page.text(EDITOR) == page.drawn("completion") == "AB"


def test_the_text_is_there_after_a_reload(page: Page, peer: Scripted) -> None:
    page.type(EDITOR, "kept")
    page.type("#sampling-top_k", "9")
    page.tab("chat")
    page.type(DRAFT, "draft")
    page.open(peer.url, fresh=False)
    assert page.find("#tab-chat").get_attribute("aria-selected") == "true"
    assert page.text(DRAFT) == "draft"
    page.tab("completion")
    assert page.text(EDITOR) == "kept"
    assert page.find("#sampling-top_k").get_property("value") == "9"


# Infilling


def test_the_hole_is_filled_at_the_cursor_and_kept(page: Page, peer: Scripted) -> None:
    peer.script(answer="return a + b")
    page.tab("infilling")
    page.type(INFILL, "def add(a, b):\n\nprint(add(1, 2))")
    page.select(INFILL, len("def add(a, b):\n"))
    page.press(Keys.CONTROL, Keys.ENTER)
    page.finished()
    filled = "def add(a, b):\nreturn a + b\nprint(add(1, 2))"
    assert page.text(INFILL) == page.drawn("infilling") == filled
    (request,) = peer.requests
    assert (request["prompt"], request["suffix"]) == ("def add(a, b):\n", "\nprint(add(1, 2))")
    page.find(INFILL).send_keys(Keys.TAB)
    assert page.text(INFILL) == filled
    assert page.all("#panel-infilling .answer") == []
    page.find(INFILL).send_keys(Keys.TAB)
    assert page.text(INFILL) == filled.replace("\nprint", "    \nprint")


def test_a_selection_is_replaced_and_comes_back_with_undo(page: Page, peer: Scripted) -> None:
    peer.script(answer="new")
    page.tab("infilling")
    page.type(INFILL, "the old text")
    page.select(INFILL, 4, 7)
    page.run()
    assert page.text(INFILL) == "the new text"
    assert (peer.requests[0]["prompt"], peer.requests[0]["suffix"]) == ("the ", " text")
    page.run()  # again: what was not kept is replaced
    assert peer.requests[1] == peer.requests[0]
    page.find(INFILL).send_keys(Keys.ESCAPE)
    page.find(INFILL).send_keys(Keys.CONTROL, "z")
    assert page.text(INFILL) == "the old text"


def test_an_answer_streams_into_the_hole(page: Page, peer: Scripted) -> None:
    peer.script(answer="one two three", hold_after=2)
    page.tab("infilling")
    page.type(INFILL, "()")
    page.select(INFILL, 1)
    page.find("#run").click()
    page.wait(lambda: page.text(INFILL) == "(one two)")
    peer.change(go_on=True)
    page.finished()
    assert page.text(INFILL) == "(one two three)"


# Chat


def bubbles(page: Page) -> list[str]:
    return [str(each.get_property("textContent")) for each in page.all("#panel-chat .message .body")]


def say(page: Page, text: str) -> None:
    page.type(DRAFT, text)
    page.find(DRAFT).send_keys(Keys.ENTER)
    page.wait(lambda: text in bubbles(page) or page.find("#problem").is_displayed())
    page.finished()


def test_a_conversation_is_sent_whole(page: Page, peer: Scripted) -> None:
    peer.script(answer="fine")
    page.tab("chat")
    page.find(".system summary").click()
    page.type("#chat-system", "Be brief.")
    say(page, "How are you?")
    say(page, "Sure?")
    page.wait(lambda: bubbles(page) == ["How are you?", "fine", "Sure?", "fine"])
    assert [(each["role"], each["content"]) for each in peer.requests[1]["messages"]] == [
        ("system", "Be brief."),
        ("user", "How are you?"),
        ("assistant", "fine"),
        ("user", "Sure?"),
    ]
    assert peer.requests[1]["top_logprobs"] == 5


def test_a_message_is_edited_and_an_answer_made_anew(page: Page, peer: Scripted) -> None:
    peer.script(answer="first")
    page.tab("chat")
    say(page, "one")
    peer.script(answer="second")
    page.find(".message.assistant .tools button:last-child").click()
    page.wait(lambda: bubbles(page) == ["one", "second"])
    page.finished()
    page.find(".message.user .tools button:last-child").click()
    page.type(".edit textarea", "two")
    page.find(".edit .primary").click()
    page.wait(lambda: bubbles(page) == ["two", "second"])
    page.finished()
    assert [each["content"] for each in peer.requests[1]["messages"]] == ["two"]


def test_an_answer_that_does_not_come_costs_nothing(page: Page, peer: Scripted) -> None:
    """The old answer, or the message, is where it was."""
    peer.script(answer="first")
    page.tab("chat")
    say(page, "one")
    peer.script(refuse=(400, "no"))
    page.find(".message.assistant .tools button:last-child").click()
    assert page.problem() == "The server refused the request: no"
    page.wait(lambda: bubbles(page) == ["one", "first"])
    say(page, "two")
    page.wait(lambda: bubbles(page) == ["one", "first"])
    assert page.text(DRAFT) == "two"


def test_code_in_an_answer_is_shown_as_code(page: Page, peer: Scripted) -> None:
    peer.script(answer="Use `x`:\n\n```python\ndef f():\n    pass\n```\nDone.")
    page.tab("chat")
    page.find("#probabilities").click()
    say(page, "code")
    page.wait(lambda: len(page.all(".message.assistant figure")) == 1)
    assert page.text(".message.assistant pre") == "def f():\n    pass"
    assert page.text(".message.assistant p code") == "x"
    assert page.text(".message.assistant .body > p:last-child") == "Done."


def test_tokens_of_an_answer_are_one_stop_of_the_keyboard(page: Page, peer: Scripted) -> None:
    peer.script(answer="one two three")
    page.tab("chat")
    say(page, "count")
    page.wait(lambda: len(page.all(".message [data-token]")) == 3)
    page.js("document.querySelector('.message [data-token]').focus()")
    page.wait(lambda: "one" in page.text("#announcer"))
    page.press(Keys.ARROW_RIGHT)
    page.wait(lambda: "two" in page.text("#announcer"))
    assert [each.get_attribute("tabindex") for each in page.all(".message [data-token]")] == ["-1", "0", "-1"]


# A model's text stays text


@pytest.mark.parametrize("probabilities", [True, False])
@pytest.mark.parametrize("tab", ["completion", "infilling", "chat"])
def test_hostile_text_stays_text(page: Page, peer: Scripted, tab: str, probabilities: bool) -> None:
    peer.script(answer=HOSTILE)
    page.tab(tab)
    if not probabilities:
        page.find("#probabilities").click()
    if tab == "chat":
        say(page, HOSTILE)
        page.wait(lambda: bubbles(page) == [HOSTILE, HOSTILE])
    else:
        page.type(f"#{tab}-text", "")
        page.run()
        page.wait(lambda: page.drawn(tab) == HOSTILE)
        assert page.text(f"#{tab}-text") == HOSTILE
    assert page.all("main img, main script") == []
    assert page.js("return window.broken") is None


def test_the_browser_itself_refuses_html_from_strings(page: Page) -> None:
    """Trusted Types, should a module ever forget itself."""
    code = "try { document.body.innerHTML = '<b>x</b>'; return 'done'; } catch (error) { return error.name; }"
    assert page.js(code) == "TypeError"
    page.complaints()  # it tells of that


# What fails is said


def test_a_server_that_is_gone_is_said_to_be_and_found_again(page: Page, peer: Scripted) -> None:
    page.type(EDITOR, "kept")
    peer.kill()
    try:
        page.run()
        assert "cannot be reached" in page.problem()
        page.wait(lambda: page.text("#model-name").strip() == "Not connected")
        assert page.text(EDITOR) == "kept"
    finally:
        peer.start()
    page.find("#problem button").click()
    page.wait(lambda: page.text(EDITOR) == "kepthello world")
    page.wait(lambda: page.text("#model-name").strip() == "scripted-7b")


def test_a_connection_that_breaks_keeps_what_had_come(page: Page, peer: Scripted) -> None:
    peer.script(answer="one two three", hold_after=2, break_after=2)
    page.type(EDITOR, "zero ")
    page.find("#run").click()
    page.wait(lambda: page.text(EDITOR) == "zero one two")
    peer.change(go_on=True)
    assert "connection was lost" in page.problem()
    page.finished()
    assert page.text(EDITOR) == "zero one two"
    peer.script(answer="one two three", hold_after=2, break_after=2)
    page.tab("chat")
    page.type(DRAFT, "count")
    page.find(DRAFT).send_keys(Keys.ENTER)
    page.wait(lambda: bubbles(page) == ["count", "one two"])
    peer.change(go_on=True)
    assert "connection was lost" in page.problem()
    page.wait(lambda: bubbles(page) == ["count", "one two"])
    assert "broke off" in page.text(".message.assistant .note")


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        (400, "The server refused the request: top_k is -3"),
        (429, "The server is busy. Try again in a moment."),
        (500, "The server failed: top_k is -3"),
        (503, "The server is not ready: it is starting or shutting down: top_k is -3"),
    ],
)
def test_an_error_is_told_in_plain_words(page: Page, peer: Scripted, status: int, sentence: str) -> None:
    peer.script(refuse=(status, "top_k is -3"))
    page.run()
    assert page.problem() == sentence


def test_a_key_is_asked_for_and_forgotten_with_the_tab(page: Page, peer: Scripted) -> None:
    peer.script(key="secret")
    page.run()
    assert page.problem() == "The server asks for an API key."
    page.find("#problem button").click()
    page.type("#key", "wrong")
    page.press(Keys.ENTER)
    page.wait(lambda: "does not accept" in page.problem())
    page.find("#problem button").click()
    page.type("#key", "secret")
    page.find("#key-save").click()
    page.wait(lambda: not page.find("#problem").is_displayed())
    page.run()
    assert peer.keys[-1] == "secret"
    stored = page.js("return [JSON.stringify(localStorage), JSON.stringify(sessionStorage), document.cookie]")
    assert ["secret" in each for each in stored] == [False, True, False]


def test_what_the_model_cannot_do_is_closed_with_the_reason(page: Page, peer: Scripted) -> None:
    peer.script(infill=False, chat_format=None)
    page.open(peer.url)
    page.wait(lambda: page.find("#tab-infilling").get_attribute("aria-disabled") == "true")
    for tab, word in (("infilling", "cannot infill"), ("chat", "cannot chat")):
        assert word in page.find(f"#tab-{tab}").get_attribute("title")
        page.tab(tab)
        assert word in page.problem()
        assert not page.find("#run").is_enabled()
    page.tab("completion")
    page.run()
    assert len(peer.requests) == 1


# The overlay, and the modules by themselves


@pytest.mark.parametrize("width", [400, 1280])
def test_the_overlay_has_the_text_areas_lines(page: Page, width: int) -> None:
    """As many lines, whatever is in them: else colours and cursor part."""
    lines = [
        "",
        "x" * 400,
        "\ta\tb",
        "word " * 80,
        "",
        "",
        "def f():  # é 日本語 🦙",
        "  ",
        "a" + " " * 300 + "b",
        "",
    ]
    size = {"width": width, "height": 860, "deviceScaleFactor": 1, "mobile": False}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        heights = page.js(
            """
            const area = document.querySelector("#completion-text");
            area.value = arguments[0];
            area.dispatchEvent(new Event("input"));
            return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
              const rows = [...area.previousSibling.children].map((row) => row.getBoundingClientRect());
              const padding = 2 * parseFloat(getComputedStyle(area).paddingTop);
              area.style.height = "0"; // as high as its text
              done([area.scrollHeight, Math.round(rows.at(-1).bottom - rows[0].top + padding)]);
            })));
            """,
            "\n".join(lines),
        )
        assert heights[0] == heights[1] > 20 * (len(lines) + 4)
        wide = page.js("return document.documentElement.scrollWidth")
        assert wide <= width, "the page does not scroll sideways"
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


MODULE = (
    "const done = arguments[arguments.length - 1]; import(new URL('playground/{}', document.baseURI)).then("
)


def module(page: Page, name: str, code: str, *arguments: object) -> object:
    """What a function of the page's module `name`, called as m, gives."""
    whole = MODULE.format(name) + f"async (m) => {{ {code} }}).then(done, (error) => done(String(error)));"
    return page.driver.execute_async_script(whole, *arguments)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=repr)
def test_events_are_the_same_wherever_the_bytes_are_cut(page: Page, end: str) -> None:
    lines = [
        ": ping",
        "",
        'data: {"a": "é🦙"}',
        "",
        "event: x",
        "data:one",
        "data: two",
        "",
        "data: unfinished",
    ]
    code = """
      const bytes = new TextEncoder().encode(arguments[0]);
      const found = [];
      for (let size = 1; size <= 7; size += 1) {
        const body = new ReadableStream({ start(out) {
          for (let at = 0; at < bytes.length; at += size) out.enqueue(bytes.slice(at, at + size));
          out.close();
        } });
        const data = [];
        for await (const each of m.events(body)) data.push(each);
        found.push(data);
      }
      return found;"""
    code = code.replace("arguments[0]", "text")
    found = module(page, "sse.js", f"const text = {end.join(lines)!r}; {code}".replace("'''", "'"))
    assert found == [['{"a": "é🦙"}', "one\ntwo"]] * 7


@pytest.mark.parametrize(
    ("steps", "marks"),
    [
        # text, tokens -> start, end, text
        ([("a b", ["a", " b"])], [(0, 1, "a"), (1, 3, " b")]),
        ([("ab", []), ("c", ["abc"])], [(0, 3, "abc")]),  # a token comes with the end of its text
        ([("x", [" x"])], [(0, 1, "x")]),  # the first one's space was dropped
        ([("é!", ["bytes:\\xc3", "bytes:\\xa9", "!"])], [(0, 1, "é"), (1, 2, "!")]),
        ([("", ["bytes:\\xc3"]), ("é", ["bytes:\\xa9"])], [(0, 1, "é")]),
        ([("ab", ["", "a", "Z", "b"])], [(0, 1, "a"), (1, 2, "b")]),  # one that has no place
    ],
    ids=str,
)
def test_tokens_find_their_text(page: Page, steps: list, marks: list) -> None:
    given = [[text, [{"token": each, "logprob": -0.5} for each in tokens]] for text, tokens in steps]
    code = f"""
      const aligner = new m.Aligner();
      return {given!r}.flatMap(([text, tokens]) => aligner.add(text, tokens.map(
        ({{ token, logprob }}) => ({{ ...m.spelled(token), logprob, top: [] }}))))
        .map((each) => [each.start, each.end, each.text]);"""
    assert module(page, "tokens.js", code) == [list(each) for each in marks]


# The real server, through `codellama playground`


def test_the_real_server_answers_as_the_library(browser: Page, url: str, library: dict) -> None:
    with playground_program(url) as address:
        browser.open(address)
        browser.type(EDITOR, COMPLETION)
        tokens = str(len(library["completion"]["tokens"]))
        browser.type("#sampling-temperature", "0")
        browser.type("#sampling-max_tokens", tokens)
        browser.run()
        assert browser.text(EDITOR) == COMPLETION + library["completion"]["text"]
        assert len(browser.all("#panel-completion [data-token]")) >= int(tokens)
        assert f"{tokens} tokens" in browser.text("#stats")
        browser.tab("infilling")
        browser.type(INFILL, "")
        browser.js("arguments[0].value = arguments[1]", browser.find(INFILL), PREFIX + SUFFIX)
        browser.js("arguments[0].dispatchEvent(new Event('input'))", browser.find(INFILL))
        browser.select(INFILL, len(PREFIX))
        browser.type("#sampling-max_tokens", tokens)
        browser.select(INFILL, len(PREFIX))
        browser.run()
        assert browser.text(INFILL) == PREFIX + library["infilling"]["text"] + SUFFIX
        browser.driver.get("about:blank")  # its streams are closed
