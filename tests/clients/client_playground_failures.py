"""The playground: a model's text stays text, and what fails is said in plain words."""

from __future__ import annotations

import pytest
from browser_page import DRAFT, EDITOR, Page, bubbles, say
from playground_server import Scripted
from selenium.webdriver import Keys

HOSTILE = "<img src=x onerror='window.broken=1'><script>window.broken=1</script>&amp;</textarea>"

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
