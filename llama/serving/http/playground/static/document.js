// What completion and infilling share: an editor, its examples and buttons, and tokens that can be looked at.

import { byId, copy, el } from "./dom.js";
import { Editor } from "./editor.js";
import { icon } from "./icons.js";
import { dismiss, enter, inspect, isOpen } from "./inspector.js";

export function button(drawing, label, click, key = null) {
  // Narrow pages show the drawing alone.
  return el("button", { type: "button", className: "tool", title: label, ariaLabel: label, on: { click } },
    icon(drawing), el("span", { className: "label" }, label), ...(key ? [el("kbd", {}, key)] : []));
}

/**
 * A tab around one text. A subclass says what is asked for (`request`), where the answer goes (`begin`), and what
 * happens when an alternative of a token is chosen (`pick`).
 */
export class Document {
  goesOn = false; // the next answer goes on from a chosen token
  unavailable = null; // why this model cannot do it

  /** run: {start(), changed(), curl()}: how the tab asks the page to do something. */
  constructor(host, run, options) {
    this.run = run;
    this.host = host;
    this.editor = new Editor(options);
    this.examples = el("div", { className: "examples" });
    const copyButton = button("copy", "Copy", () => copy(this.editor.text, copyButton));
    const curlButton = button("terminal", "Copy as curl", () => copy(run.curl(), curlButton));
    const head = el("div", { className: "head" }, this.examples,
      el("div", { className: "tools" }, copyButton, curlButton));
    host.append(head, this.editor.element);
    this.tools = el("div", { className: "tools" }); // beside the button that runs
    this.editor.addEventListener("input", () => {
      dismiss();
      this.remember();
      this.refresh();
    });
    this.#watchTokens();
  }

  offer(examples, choose) {
    this.examples.append(el("span", {}, "Examples"), ...examples.map((example) => el("button", {
      type: "button", className: "chip", on: { click: () => {
        if (this.editor.area.readOnly) return;
        choose(example);
        this.editor.element.scrollTop = 0;
      } } }, example.name)));
  }

  focus() {
    this.editor.area.focus();
  }

  begin(start, end) {
    if (!this.goesOn) this.editor.begin(start, end);
    this.goesOn = false;
    this.editor.readOnly = true;
  }

  write(text, marks) {
    this.editor.write(text, marks);
  }

  /** The answer is over. If nothing came, what it was to replace is there again. */
  end() {
    const { start, end } = this.editor.answer;
    this.editor.end();
    this.editor.readOnly = false;
    if (start === end) this.editor.undo();
    this.remember();
    this.refresh();
  }

  /** Put a chosen token in place of `from` to `end`, and go on behind it; the answer begins at `start`. */
  goOn(from, end, token, mark, start = from) {
    this.editor.begin(from, end);
    this.editor.write(token.text, [{ ...token, top: mark.top, start: 0, end: token.text.length }]);
    this.editor.resume(start);
    this.goesOn = true;
    this.run.start();
  }

  canPick() {
    return true;
  }

  refresh() {
    const { history } = this.editor;
    if (this.undoButton) this.undoButton.disabled = !history.canUndo;
  }

  #watchTokens() {
    const { editor } = this;
    const show = (mark, rectangle, speak) => {
      const seen = byId("probabilities").checked && mark && mark.logprob !== null;
      const canPick = seen && !editor.area.readOnly && this.canPick(mark);
      const pick = canPick ? (...chosen) => this.pick(...chosen) : null;
      inspect(seen ? mark : null, rectangle, { pick, speak });
    };
    editor.addEventListener("hover", ({ detail }) => show(detail?.mark, detail?.rectangle, false));
    editor.addEventListener("caret", ({ detail: event }) => {
      const moved = event.type === "keyup" && /^(Arrow|Home|End|Page)/.test(event.key) && !event.altKey;
      const tapped = event.type === "pointerup" && event.pointerType === "touch"; // there is no hovering
      if (!moved && !tapped) return;
      const mark = editor.markAt(editor.selection.start);
      show(mark, mark && editor.place(mark), moved);
    });
    editor.area.addEventListener("keydown", (event) => {
      if (event.altKey && event.key === "ArrowDown" && isOpen() && enter()) event.preventDefault();
    });
  }
}
