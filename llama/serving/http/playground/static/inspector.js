// The card beside a token: how likely it was, and what else the model had in mind.

import { announce, byId, el } from "./dom.js";
import { percent, visible } from "./tokens.js";

// Pieces that end or divide a prompt: as text they would not be what they are.
const CONTROL = /^ ?<(?:s|\/s|unk|PRE|SUF|MID|EOT|step)>$/;

const card = byId("inspector");
let shown = null; // the mark
let leaving = null;

/** Show a mark's card at a rectangle of the window. With `pick`, an alternative can be chosen. */
export function inspect(mark, rectangle, { pick = null, speak = false } = {}) {
  clearTimeout(leaving);
  if (!mark || !rectangle) return dismissSoon();
  if (mark === shown) return undefined;
  shown = mark;
  card.replaceChildren(
    el("div", { className: "token-head" },
      el("code", {}, visible(mark.text)),
      el("strong", {}, percent(mark.logprob))),
    ...alternatives(mark, pick));
  card.hidden = false;
  place(rectangle);
  if (speak) announce(spoken(mark));
  return undefined;
}

export function dismiss() {
  clearTimeout(leaving);
  shown = null;
  card.hidden = true;
}

export function isOpen() {
  return !card.hidden;
}

/** Move the keyboard's focus to the first alternative that can be chosen; false if there is none. */
export function enter() {
  const first = card.querySelector("button");
  first?.focus();
  return Boolean(first);
}

function dismissSoon() {
  leaving = setTimeout(dismiss, 160); // long enough to move the pointer into the card
}

function alternatives(mark, pick) {
  if (!mark.top?.length) return [];
  const rows = mark.top.toSorted((a, b) => b.logprob - a.logprob).map((one) => {
    const bar = el("span", { className: "bar" });
    bar.style.setProperty("--share", String(Math.exp(one.logprob)));
    const chosen = one.text === mark.text;
    const parts = [el("code", {}, visible(one.text)), bar, el("span", { className: "share" }, percent(one.logprob))];
    const can = pick && !chosen && !one.bytes && !CONTROL.test(one.text);
    const row = can
      ? el("button", { type: "button", title: "Continue from here with this token", on: { click: () => {
        dismiss();
        pick(mark, one);
      } } }, ...parts)
      : el("div", {}, ...parts);
    return el("li", { className: chosen ? "chosen" : "" }, row);
  });
  const hint = pick ? el("p", { className: "hint" }, "Choose one to continue from it") : null;
  return [el("ol", {}, ...rows), ...(hint ? [hint] : [])];
}

function spoken(mark) {
  const others = (mark.top ?? []).filter((one) => one.text !== mark.text).slice(0, 3);
  const list = others.map((one) => `${visible(one.text)} ${percent(one.logprob)}`).join(", ");
  return `${visible(mark.text)}, ${percent(mark.logprob)}${list ? `; instead: ${list}` : ""}`;
}

/** Below the token, or above it where there is no room; never outside of the window. */
function place(rectangle) {
  const { offsetWidth: width, offsetHeight: height } = card;
  const left = Math.max(8, Math.min(rectangle.left, window.innerWidth - width - 8));
  const below = rectangle.bottom + 6;
  const top = below + height > window.innerHeight - 8 ? rectangle.top - height - 6 : below;
  card.style.left = `${left}px`;
  card.style.top = `${Math.max(8, top)}px`;
}

card.addEventListener("pointerenter", () => clearTimeout(leaving));
card.addEventListener("pointerleave", dismissSoon);
card.addEventListener("keydown", (event) => {
  const buttons = [...card.querySelectorAll("button")];
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step) {
    event.preventDefault();
    buttons.at((buttons.indexOf(document.activeElement) + step) % buttons.length)?.focus();
  }
});
window.addEventListener("scroll", dismiss, true);
window.addEventListener("resize", dismiss);
