// A chat answer's text as elements: code between fences, `code` within a line, and plain text. No other Markdown.

import { copy, el } from "./dom.js";
import { icon } from "./icons.js";
import { hasBraces, highlight } from "./highlight.js";

const FENCE = /^[ \t]*```([^\n`]*)(?:\n|$)/m;
const END = /^[ \t]*```[ \t]*$/m;

/** The elements that show a text. An unclosed fence holds the rest: it may still be streaming. */
export function formatted(text) {
  const parts = [];
  let rest = text;
  for (let fence = FENCE.exec(rest); fence; fence = FENCE.exec(rest)) {
    parts.push(...prose(rest.slice(0, fence.index)));
    rest = rest.slice(fence.index + fence[0].length);
    const end = END.exec(rest);
    parts.push(block(end ? rest.slice(0, end.index).replace(/\n$/, "") : rest, fence[1].trim()));
    rest = end ? rest.slice(end.index + end[0].length).replace(/^\n/, "") : "";
  }
  parts.push(...prose(rest));
  return parts;
}

function prose(text) {
  return text.split(/\n{2,}/).filter((each) => each.trim()).map((paragraph) => el("p", {},
    ...paragraph.replace(/^\n|\n$/g, "").split(/(`[^`\n]+`)/).filter(Boolean).map((part) => (
      /^`[^`]+`$/.test(part) ? el("code", {}, part.slice(1, -1)) : part))));
}

function block(code, language) {
  const button = el("button", { type: "button", className: "tool", on: { click: () => copy(code, button) } },
    icon("copy"), el("span", { className: "label" }, "Copy"));
  const lines = el("code", {});
  const braces = hasBraces(code);
  let state = null;
  code.split("\n").forEach((line, i) => {
    const found = highlight(line, state, braces);
    state = found.state;
    let at = 0;
    if (i) lines.append("\n");
    for (const { start, end, kind } of found.spans) {
      lines.append(line.slice(at, start), el("span", { className: `is-${kind}` }, line.slice(start, end)));
      at = end;
    }
    lines.append(line.slice(at));
  });
  return el("figure", { className: "code" },
    el("figcaption", {}, el("span", {}, language || "code"), button), el("pre", { tabIndex: 0 }, lines));
}
