"""The playground's overlay, and its modules by themselves, in the browser that runs them."""

from __future__ import annotations

import pytest
from browser_page import Page


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
        ([("a\r\nb", ["a", "\r\n", "b"])], [(0, 1, "a"), (1, 2, "\n"), (2, 3, "b")]),  # a text area has no CR
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
