// One message of a chat, with what can be done to it.

import { byId, copy, el } from "./dom.js";
import { button } from "./document.js";
import { formatted } from "./format.js";
import { inspect } from "./inspector.js";
import { level } from "./tokens.js";

export class MessageView {
  #frame = null;
  #marks = new WeakMap(); // a token's element -> its mark

  /** message: {role, content, marks?, note?}; chat: {edit(message, text), again(message)}. */
  constructor(message, chat) {
    this.message = message;
    this.chat = chat;
    this.body = el("div", { className: "body" });
    this.note = el("p", { className: "note", hidden: true });
    this.copyButton = button("copy", "Copy", () => copy(message.content, this.copyButton));
    const more = message.role === "user"
      ? button("edit", "Edit", () => this.#edit())
      : button("again", "Regenerate", () => chat.again(message));
    this.tools = el("div", { className: "tools" }, this.copyButton, more);
    this.element = el("article", { className: `message ${message.role}`,
      ariaLabel: message.role === "user" ? "You" : "Model" },
    this.body, this.note, this.tools);
    for (const type of ["mouseover", "focusin"]) this.body.addEventListener(type, (event) => this.#look(event));
    this.body.addEventListener("mouseleave", () => inspect(null));
    this.body.addEventListener("keydown", (event) => this.#keys(event));
    this.draw();
  }

  draw() {
    this.#frame ??= requestAnimationFrame(() => {
      this.#frame = null;
      const { message } = this;
      const tokens = byId("probabilities").checked && message.marks?.length;
      this.body.classList.toggle("tokens", Boolean(tokens));
      this.body.replaceChildren(
        ...(tokens ? this.#tokens() : message.role === "assistant" ? formatted(message.content)
          : [message.content]));
      this.note.textContent = message.note ?? "";
      this.note.hidden = !message.note;
      this.element.dispatchEvent(new CustomEvent("drawn", { bubbles: true }));
    });
  }

  set busy(value) {
    this.element.classList.toggle("busy", value);
    this.body.setAttribute("aria-busy", String(value));
  }

  #tokens() {
    const { content, marks } = this.message;
    const parts = [];
    let at = 0;
    for (const mark of marks) {
      if (mark.start > at) parts.push(content.slice(at, mark.start));
      const newline = mark.text.includes("\n") ? " ends-line" : "";
      const span = el("span", { className: `p${level(mark.logprob)}${newline}`, tabIndex: parts.length ? -1 : 0 },
        content.slice(mark.start, mark.end));
      span.dataset.token = "";
      this.#marks.set(span, mark);
      parts.push(span);
      at = mark.end;
    }
    parts.push(content.slice(at));
    return parts;
  }

  #look(event) {
    const mark = this.#marks.get(event.target);
    const speak = event.type === "focusin";
    inspect(mark ?? null, mark && event.target.getBoundingClientRect(), { speak });
  }

  /** One stop of the Tab key; the arrows go from token to token. */
  #keys(event) {
    const tokens = [...this.body.querySelectorAll("[data-token]")];
    const at = tokens.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tokens.length - 1 }[event.key];
    if (at < 0 || to === undefined || !tokens[to]) return;
    event.preventDefault();
    tokens[at].tabIndex = -1;
    tokens[to].tabIndex = 0;
    tokens[to].focus();
  }

  #edit() {
    const { message } = this;
    const area = el("textarea", { value: message.content, ariaLabel: "Edit the message", rows: 3 });
    const close = () => {
      form.replaceWith(this.body);
      this.tools.hidden = false;
    };
    const send = el("button", { type: "button", className: "primary", on: { click: () => {
      if (area.value.trim() && this.chat.edit(message, area.value)) close();
    } } }, "Send again");
    const form = el("div", { className: "edit" }, area, el("div", { className: "buttons" },
      el("button", { type: "button", on: { click: close } }, "Cancel"), send));
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") close();
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send.click();
      if (["Escape", "Enter"].includes(event.key)) event.stopPropagation();
    });
    this.tools.hidden = true;
    this.body.replaceWith(form);
    area.focus();
  }
}
