// The line that says what went wrong, and what can be done about it.

import { byId, el } from "./dom.js";
import { icon } from "./icons.js";

const line = byId("problem");
let kind = null;

/** Show a Problem. `again` and `key` are what its buttons do. */
export function showProblem(problem, { again = null, key = null } = {}) {
  kind = problem.kind;
  const buttons = [];
  if (kind === "key" && key) {
    buttons.push(el("button", { type: "button", on: { click: key } }, "Enter the key"));
  } else if (again && kind !== "refused") {
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

/** Take the line away; with "connection", only if it says that the server was gone. */
export function clearProblem(which = "any") {
  if (which === "connection" && !["gone", "starting", "key"].includes(kind)) return;
  kind = null;
  line.hidden = true;
  line.replaceChildren();
}
