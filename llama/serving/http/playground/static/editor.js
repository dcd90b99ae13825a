// A text area with an overlay: the text area is typed into, and its text is transparent; the overlay shows the same
// characters in the same places, coloured. The overlay's height makes both grow, and what is around them scrolls.

import { el } from "./dom.js";
import { hasBraces, highlight } from "./highlight.js";
import { History } from "./history.js";
import { level } from "./tokens.js";

/**
 * Events: `input` (the user changed the text), `caret` (the cursor may have moved; detail: the DOM's event),
 * `hover` (detail: the mark under the pointer and its rectangle, or null).
 */
export class Editor extends EventTarget {
  marks = []; // {start, end, logprob, top, text}: the model's text, in order
  hole = null; // {start, end}: drawn while the text area cannot show its own selection
  answer = null; // {start, end}: what the model is writing
  history = new History(); // a browser forgets its own when a program writes into a text area
  #lines = []; // of what the overlay shows: {key, row, marks, line, state, braces, coloured}
  #shown = new WeakMap(); // a span of the overlay -> its mark
  #text = "";
  #caret = 0; // before the key that is being typed
  #frame = null;
  #following = true; // the end of the answer is kept in sight, until the reader scrolls away

  constructor({ id, label, lineNumbers = false, placeholder = "" }) {
    super();
    this.overlay = el("div", { className: "overlay", ariaHidden: "true" });
    this.area = el("textarea", {
      id,
      ariaLabel: label,
      placeholder,
      spellcheck: false,
      autocapitalize: "off",
      autocomplete: "off",
      wrap: "soft",
      rows: 1,
    });
    this.canvas = el("div", { className: "canvas" }, this.overlay, this.area);
    this.element = el("div", { className: `editor${lineNumbers ? " numbered" : ""}` }, this.canvas);
    this.area.addEventListener("input", (event) => this.#typed(event.inputType));
    this.area.addEventListener("keydown", (event) => this.#keys(event));
    this.area.addEventListener("mousemove", (event) => this.#hover(event));
    this.area.addEventListener("mouseleave", () => this.#emit("hover", null));
    for (const type of ["keyup", "pointerup", "focus"]) {
      this.area.addEventListener(type, (event) => {
        this.#caret = this.area.selectionStart;
        this.#emit("caret", event);
      });
    }
    for (const type of ["focus", "blur"]) this.area.addEventListener(type, () => this.draw());
    for (const type of ["wheel", "touchmove"]) {
      this.element.addEventListener(type, () => { this.#following = false; }, { passive: true });
    }
    // A click beside the text means its end.
    this.element.addEventListener("pointerdown", (event) => {
      if (event.target !== this.element) return;
      event.preventDefault();
      this.area.focus();
    });
  }

  get text() {
    return this.#text;
  }

  /** Replace everything. */
  set(text, marks = []) {
    this.area.value = text;
    this.#text = this.area.value; // a text area turns CRLF into LF
    this.marks = marks;
    this.draw();
  }

  /** Begin an answer in place of a range; `write` adds to it. */
  begin(start, end) {
    this.history.note(this.#moment(), null);
    this.area.setRangeText("", start, end, "start");
    this.#text = this.area.value;
    this.#move(start, end, 0);
    this.answer = { start, end: start, base: start };
    this.#following = true;
    this.draw();
  }

  /** Add text at the end of the answer, and marks at places after its base (also of text that came before). */
  write(text, marks) {
    const { answer } = this;
    if (text) {
      this.area.setRangeText(text, answer.end, answer.end, "preserve");
      this.#text = this.area.value;
      this.#move(answer.end, answer.end, text.length);
      answer.end += text.length;
    }
    const outside = this.marks.filter((each) => each.end <= answer.start || each.start >= answer.end);
    const scored = this.marks.filter(
      (each) => each.text !== undefined && each.start >= answer.start && each.end <= answer.end);
    for (const each of marks) {
      scored.push({ ...each, start: each.start + answer.base, end: each.end + answer.base });
    }
    this.marks = [...outside, ...scored, ...gaps(scored, answer)].sort((a, b) => a.start - b.start);
    this.draw();
  }

  /** What is written from now on belongs to the answer that begins at `start`; its marks count from here. */
  resume(start) {
    this.answer = { start, end: this.answer.end, base: this.answer.end };
  }

  /** End the answer: it is text like any other, but for its marks. */
  end() {
    this.area.setSelectionRange(this.answer.end, this.answer.end);
    this.answer = null;
    this.draw();
  }

  undo() {
    this.#restore(this.history.undo(this.#moment()));
  }

  redo() {
    this.#restore(this.history.redo(this.#moment()));
  }

  /** Another text, by the user's wish: it can be undone. */
  replace(text) {
    this.history.note(this.#moment(), null);
    this.set(text);
    this.#emit("input", null);
  }

  /** Forget which text was the model's. */
  unmark() {
    this.marks = [];
    this.draw();
  }

  /** Insert as if typed. */
  type(text) {
    this.area.setRangeText(text, this.area.selectionStart, this.area.selectionEnd, "end");
    this.#typed("insertText");
  }

  set readOnly(value) {
    this.area.readOnly = value;
    this.area.setAttribute("aria-busy", String(value));
    this.element.classList.toggle("busy", value);
  }

  get selection() {
    return { start: this.area.selectionStart, end: this.area.selectionEnd };
  }

  select(start, end = start) {
    this.area.setSelectionRange(start, end);
  }

  /** The mark that holds a place of the text. */
  markAt(place) {
    return this.marks.find((each) => each.start <= place && place < each.end) ?? null;
  }

  /** Where a mark is on the screen. */
  place(mark) {
    for (const span of this.overlay.querySelectorAll("[data-token]")) {
      if (this.#shown.get(span) === mark) return span.getBoundingClientRect();
    }
    return null;
  }

  /** Draw before the next frame; many changes in between are drawn once. */
  draw() {
    this.#frame ??= requestAnimationFrame(() => {
      this.#frame = null;
      this.#render();
      if (this.answer && this.#following) {
        this.overlay.querySelector(".caret")?.scrollIntoView({ block: "nearest" });
      }
    });
  }

  #keys(event) {
    const key = event.key.toLowerCase();
    if (!(event.ctrlKey || event.metaKey) || event.altKey || !["z", "y"].includes(key)) return;
    event.preventDefault();
    if (this.area.readOnly) return;
    if (key === "y" || event.shiftKey) this.redo();
    else this.undo();
  }

  #moment() {
    return { text: this.#text, marks: this.marks.map((each) => ({ ...each })), caret: this.area.selectionStart };
  }

  #restore(moment) {
    if (!moment) return;
    this.set(moment.text, moment.marks);
    this.area.setSelectionRange(moment.caret, moment.caret);
    this.#emit("input", null);
  }

  #typed(inputType) {
    const before = this.#text;
    const after = this.area.value;
    if (before === after) return;
    this.history.note({ ...this.#moment(), caret: this.#caret }, inputType);
    this.#text = after;
    let start = 0;
    const most = Math.min(before.length, after.length);
    while (start < most && before[start] === after[start]) start += 1;
    let same = 0;
    while (same < most - start && before.at(-1 - same) === after.at(-1 - same)) same += 1;
    this.#move(start, before.length - same, after.length - same - start);
    this.draw();
    this.#emit("input", null);
  }

  /** `end - start` characters became `length`: marks behind move, and what was changed is no longer the model's. */
  #move(start, end, length) {
    const by = length - (end - start);
    this.marks = this.marks.filter((each) => each.end <= start || each.start >= end);
    for (const each of this.marks) {
      if (each.start >= end && each.end > start) {
        each.start += by;
        each.end += by;
      }
    }
  }

  /** Only lines that differ from what is shown are made anew. */
  #render() {
    const lines = this.#text.split("\n");
    const braces = hasBraces(this.#text);
    const { answer } = this;
    const unseen = document.activeElement === this.area ? null : this.hole;
    const hole = answer ? { start: answer.end, end: answer.end } : unseen;
    let state = null;
    let start = 0;
    let next = 0; // the first mark that can reach this line
    lines.forEach((line, i) => {
      const end = start + line.length;
      while (next < this.marks.length && this.marks[next].end <= start) next += 1;
      const here = [];
      for (let j = next; j < this.marks.length && this.marks[j].start <= end; j += 1) here.push(this.marks[j]);
      const key = [line, state, braces, keyOf(here, start, end), keyOf(hole ? [hole] : [], start, end)].join("\0");
      const before = this.#lines[i];
      const known = before?.line === line && before.state === state && before.braces === braces;
      const coloured = known ? before.coloured : highlight(line, state, braces);
      if (before?.key !== key || here.some((each) => each.text && !before.marks.includes(each))) {
        const row = this.#row(line, start, coloured.spans, here, hole);
        if (before) before.row.replaceWith(row);
        else this.overlay.append(row);
        this.#lines[i] = { key, row, marks: here, line, state, braces, coloured };
      }
      state = coloured.state;
      start = end + 1;
    });
    for (const { row } of this.#lines.splice(lines.length)) row.remove();
  }

  #row(line, start, spans, marks, hole) {
    const row = el("div", { className: "row" });
    const length = line.length;
    const inside = (each) => Math.min(Math.max(each - start, 0), length);
    const cuts = new Set([0, length]);
    for (const each of spans) cuts.add(each.start).add(each.end);
    for (const each of [...marks, ...(hole ? [hole] : [])]) cuts.add(inside(each.start)).add(inside(each.end));
    const places = [...cuts].sort((a, b) => a - b);
    const holeHere = hole && hole.start === hole.end && hole.start >= start && hole.start <= start + length;
    for (let i = 0; i < places.length; i += 1) {
      const from = places[i];
      if (holeHere && hole.start - start === from) row.append(el("span", { className: "caret" }));
      const to = places[i + 1];
      if (to === undefined || to === from) continue;
      const span = spans.find((each) => each.start <= from && to <= each.end);
      const mark = marks.find((each) => each.start <= start + from && start + to <= each.end);
      const gone = hole && hole.start <= start + from && start + to <= hole.end;
      row.append(this.#piece(line.slice(from, to), span?.kind, mark, gone));
    }
    const newline = marks.find((each) => each.start <= start + length && start + length < each.end);
    if (newline) row.append(this.#piece("", "newline", newline, false));
    return row;
  }

  #piece(text, kind, mark, gone) {
    if (!kind && !mark && !gone) return text;
    const classes = [kind && `is-${kind}`, mark && "answer", gone && "hole"];
    const scored = mark && mark.logprob !== null && mark.logprob !== undefined;
    if (scored) classes.push(`p${level(mark.logprob)}`);
    const span = el("span", { className: classes.filter(Boolean).join(" ") }, text);
    if (scored) {
      span.dataset.token = "";
      this.#shown.set(span, mark);
    }
    return span;
  }

  /** The text area lies on top, so the token is looked for in all that is under the pointer. */
  #hover(event) {
    const under = document.elementsFromPoint(event.clientX, event.clientY);
    const span = under.find((each) => this.#shown.has(each));
    this.#emit("hover", span ? { mark: this.#shown.get(span), rectangle: span.getBoundingClientRect() } : null);
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }
}

/** What of these ranges can be seen in the line from `start` to `end`. */
function keyOf(ranges, start, end) {
  const clip = (place) => Math.min(Math.max(place, start - 1), end + 1) - start;
  return ranges.map((each) => `${clip(each.start)}:${clip(each.end)}:${each.logprob ?? ""}`).join(",");
}

/** Marks without a score for what of the answer has no token (yet). */
function gaps(scored, answer) {
  const found = [];
  let at = answer.start;
  for (const each of [...scored].sort((a, b) => a.start - b.start)) {
    if (each.start > at) found.push({ start: at, end: each.start, logprob: null });
    at = Math.max(at, each.end);
  }
  if (answer.end > at) found.push({ start: at, end: answer.end, logprob: null });
  return found;
}
