// Infilling: an editor whose cursor, or selection, is the hole. What the model fills in can be kept or undone.

import { button, Document } from "./document.js";
import { EXAMPLES } from "./examples.js";
import { save, state } from "./store.js";

const INDENT = "    ";

export class Infilling extends Document {
  name = "infilling";
  verb = "Fill";
  pending = null; // {start, end} of what was filled in and neither kept nor undone
  #before = null; // the same, before the answer that is being written
  #fills = 0; // how many steps of undo it is from there to what was before
  #leaves = false; // the next Tab leaves the editor

  constructor(host, run) {
    super(host, run, { id: "infilling-text", label: "Code; the cursor or the selection is where the model fills in",
      placeholder: "Write code, then put the cursor where something is missing.", lineNumbers: true });
    this.offer(EXAMPLES.infilling, (example) => {
      this.editor.replace(example.text);
      this.editor.select(example.cursor);
      this.editor.area.focus();
      this.#caret();
    });
    const { text, start, end } = state.infilling;
    this.editor.set(text);
    this.editor.select(Math.min(start, text.length), Math.min(end, text.length));
    this.editor.addEventListener("caret", () => this.#caret());
    this.editor.area.addEventListener("select", () => this.#caret());
    this.editor.addEventListener("input", () => this.#settle());
    this.editor.area.addEventListener("keydown", (event) => this.#tab(event));
    this.keepButton = button("check", "Keep", () => this.keep(), "Tab");
    this.undoButton = button("undo", "Undo", () => this.dismiss(), "Esc");
    this.tools.prepend(this.keepButton, this.undoButton);
    this.#caret();
    this.refresh();
  }

  request() {
    const { start, end } = this.#hole();
    const { text } = this.editor;
    return { path: "v1/completions", body: { prompt: text.slice(0, start), suffix: text.slice(end) } };
  }

  begin() {
    const { start, end } = this.#hole();
    this.#fills = this.pending ? this.#fills + 1 : 1;
    this.#before = this.pending;
    this.pending = null;
    super.begin(start, end);
  }

  end() {
    const { start, end } = this.editor.answer;
    super.end();
    if (start < end) {
      this.pending = { start, end };
    } else {
      this.pending = this.#before;
      this.#fills -= 1;
    }
    this.refresh();
    this.#caret();
  }

  /** What was filled in becomes text like any other. */
  keep() {
    if (!this.pending) return;
    this.editor.select(this.pending.end);
    this.editor.unmark();
    this.#settle();
    this.editor.area.focus();
    this.#caret();
  }

  /** -> whether there was something to undo. */
  dismiss() {
    if (!this.pending) return false;
    for (let fills = this.#fills; fills > 0; fills -= 1) this.editor.undo();
    this.editor.area.focus();
    this.#caret();
    return true;
  }

  pick(mark, token) {
    if (!this.pending) return;
    const { start, end } = this.pending;
    this.goOn(mark.start, end, token, mark, start);
  }

  canPick(mark) {
    return this.pending !== null && mark.start >= this.pending.start && mark.end <= this.pending.end;
  }

  refresh() {
    super.refresh();
    this.keepButton.hidden = this.undoButton.hidden = this.pending === null;
    this.verb = this.pending === null ? "Fill" : "Fill again";
    this.run.changed?.();
  }

  remember() {
    const { start, end } = this.editor.selection;
    state.infilling = { text: this.editor.text, start, end };
    save();
  }

  /** What the answer replaces: once more what was not kept, else the selection. */
  #hole() {
    const end = this.editor.answer?.end; // going on from a chosen token
    return end !== undefined ? { start: end, end } : this.pending ?? this.editor.selection;
  }

  #settle() {
    this.pending = null;
    this.refresh();
    this.#caret();
  }

  #caret() {
    if (this.editor.answer) return;
    this.editor.hole = this.editor.selection;
    this.editor.draw();
    this.remember();
  }

  #tab(event) {
    if (event.key === "Escape") {
      this.#leaves = true;
    } else if (event.key === "Tab" && !event.shiftKey && !event.ctrlKey && !event.altKey && !event.metaKey) {
      if (!this.#leaves && !this.editor.area.readOnly) {
        event.preventDefault();
        if (this.pending) this.keep();
        else this.editor.type(INDENT);
      }
      this.#leaves = false;
    } else if (event.key !== "Shift") {
      this.#leaves = false;
    }
  }
}
