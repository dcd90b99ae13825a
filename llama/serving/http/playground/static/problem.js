// The line that says what went wrong, and what can be done about it.

import { byId, el } from "./dom.js";
import { icon } from "./icons.js";

const line = byId("problem");
let kind = null;
let passing = false;

/** Show a Problem. `again` and `key` are what its buttons do; `passes`: it is over once the server answers. */
export function showProblem(problem, { again = null, key = null, passes = false } = {}) {
  kind = problem.kind;
  passing = passes;
  const buttons = [];
  if (kind === "key" && key) {
    buttons.push(el("button", { type: "button", on: { click: key } }, "Enter the key"));
  } else if (again && !["refused", "unable"].includes(kind)) {
    buttons.push(el("button", { type: "button", on: { click: () => {
      clearProblem();
      again();
    } } }, "Try again"));
  }
  const close = el("button", { type: "button", className: "round", ariaLabel: "Close this message",
    on: { click: () => clearProblem() } }, icon("close"));
  line.dataset.kind = kind;
  line.hidden = false;
  line.replaceChildren(el("p", {}, problem.message), ...buttons, close);
}

/** The server answers: what was only about that is over. */
export function clearPassing() {
  if (passing || kind === "key") clearProblem();
}

export function clearProblem() {
  kind = null;
  line.hidden = true;
  line.replaceChildren();
}
