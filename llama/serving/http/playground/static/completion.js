// Completion: one text, which the model goes on with.

import { button, Document } from "./document.js";
import { EXAMPLES } from "./examples.js";
import { save, state } from "./store.js";

export class Completion extends Document {
  name = "completion";
  verb = "Run";

  constructor(host, run) {
    super(host, run, { id: "completion-text", label: "Text that the model continues",
      placeholder: "Write the beginning; the model goes on." });
    this.offer(EXAMPLES.completion, (example) => {
      this.editor.replace(example.text);
      this.editor.select(example.text.length);
    });
    this.editor.set(state.completion.text);
    this.tools.prepend(this.undoButton = button("undo", "Undo", () => this.editor.undo()));
    this.refresh();
  }

  request() {
    return { path: "v1/completions", body: { prompt: this.editor.text } };
  }

  begin() {
    const end = this.editor.text.length;
    super.begin(end, end);
  }

  /** Go on from an alternative of a token: what came after it is gone, and comes back with undo. */
  pick(mark, token) {
    this.goOn(mark.start, this.editor.text.length, token, mark);
  }

  remember() {
    state.completion.text = this.editor.text;
    save();
  }
}
