"""The playground's chat: what is sent, what is changed, and nothing lost on the way."""

from __future__ import annotations

from browser_page import DRAFT, Page, bubbles, say
from playground_server import Scripted
from selenium.webdriver import Keys


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
