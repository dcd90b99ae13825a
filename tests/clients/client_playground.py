"""The playground in a browser: type, run, stop, look at tokens, infill; and against the real server."""

from __future__ import annotations

from asked import COMPLETION, PREFIX, SUFFIX
from browser_page import DRAFT, EDITOR, INFILL, Page
from playground_server import Scripted, playground_program
from selenium.webdriver import Keys

# Completion


def test_what_is_typed_is_continued(page: Page, peer: Scripted) -> None:
    peer.script(answer="    return x + 1\n")
    page.type(EDITOR, "def next(x):\n")
    page.run()
    assert page.text(EDITOR) == page.drawn("completion") == "def next(x):\n    return x + 1\n"
    (request,) = peer.requests
    assert (request["prompt"], request["model"]) == ("def next(x):\n", "scripted-7b")
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
    assert page.text(INFILL) == page.drawn("infilling") == "the old text"
    assert not page.find("#panel-infilling ~ .bar .tools").text


def test_a_filling_that_does_not_come_costs_nothing(page: Page, peer: Scripted) -> None:
    page.tab("infilling")
    page.type(INFILL, "the old text")
    page.select(INFILL, 4, 7)
    peer.script(refuse=(400, "no"))
    page.run()
    assert page.problem() == "The server refused the request: no"
    assert page.text(INFILL) == "the old text"
    peer.script(answer="new")
    page.select(INFILL, 4, 7)
    page.run()
    peer.script(refuse=(400, "no"))
    page.run()
    assert page.text(INFILL) == "the new text"
    page.find(INFILL).send_keys(Keys.ESCAPE)
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
