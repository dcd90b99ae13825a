// Chat: a conversation, a system prompt, and a place to write.

import { button } from "./document.js";
import { copy, el } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { MessageView } from "./message.js";
import { save, state } from "./store.js";

export class Chat {
  name = "chat";
  verb = "Send";
  key = "⏎"; // and what runs the other tabs
  unavailable = null;
  #views = new Map(); // message -> its view
  #answer = null; // the message that is being written
  #replaced = null; // the messages that it is to replace

  constructor(host, run) {
    this.run = run;
    this.host = host;
    this.log = el("div", { className: "log", role: "log", ariaLabel: "Conversation", tabIndex: -1 });
    this.empty = el("div", { className: "empty" }, el("p", {}, "Ask the model something."),
      el("div", { className: "examples" }, ...EXAMPLES.chat.map((example) => el("button", {
        type: "button", className: "chip", on: { click: () => this.#draft(example.text) } }, example.name))));
    this.system = el("textarea", { id: "chat-system", rows: 2, value: state.chat.system,
      placeholder: "Optional: how the model should answer", on: { input: () => this.remember() } });
    this.draft = el("textarea", { id: "chat-draft", rows: 1, ariaLabel: "Your message", value: state.chat.draft,
      placeholder: "Write a message", on: { input: () => this.remember() } });
    this.draft.addEventListener("keydown", (event) => this.#keys(event));
    const grows = el("div", { className: "grows" }, this.draft);
    const system = el("details", { className: "system", open: state.chat.system !== "" },
      el("summary", {}, "System prompt"), el("label", { className: "offscreen", htmlFor: "chat-system" },
        "System prompt"), this.system);
    this.newButton = button("clear", "New chat", () => this.#clear());
    const curlButton = button("terminal", "Copy as curl", () => copy(run.curl(), curlButton));
    const head = el("div", { className: "head" }, system,
      el("div", { className: "tools" }, this.newButton, curlButton));
    this.tools = el("div", { className: "tools" });
    host.append(head, el("div", { className: "scroll" }, this.empty, this.log), grows);
    this.scroll = this.log.parentElement;
    this.log.addEventListener("drawn", () => this.#follow());
    for (const message of state.chat.messages) this.#show(message);
    this.#refresh();
  }

  get #messages() {
    return state.chat.messages;
  }

  /** What is asked: a message of the log that has no answer yet, else the draft. */
  request() {
    const system = this.system.value.trim() ? [{ role: "system", content: this.system.value }] : [];
    const draft = this.#sendsDraft ? [{ role: "user", content: this.draft.value }] : [];
    const messages = this.#messages.map(({ role, content }) => ({ role, content }));
    return { path: "v1/chat/completions", body: { messages: [...system, ...messages, ...draft] } };
  }

  get #sendsDraft() {
    return this.draft.value.trim() !== "" && this.#messages.at(-1)?.role !== "user";
  }

  /** Why nothing can be sent, or null. */
  refusal() {
    const { messages } = this.request().body;
    return messages.at(-1)?.role === "user" ? null : "Write a message first.";
  }

  begin() {
    if (this.#sendsDraft) {
      this.#add({ role: "user", content: this.draft.value });
      this.#draft("");
    }
    this.#answer = { role: "assistant", content: "", marks: [] };
    this.#add(this.#answer).busy = true;
    this.#refresh();
    this.scroll.scrollTop = this.scroll.scrollHeight;
  }

  write(text, marks) {
    this.#answer.content += text;
    this.#answer.marks.push(...marks);
    this.#views.get(this.#answer).draw();
  }

  /** outcome: {stopped, finish, problem}. A message that got no answer goes back to where it was written. */
  end({ stopped, finish, problem }) {
    const answer = this.#answer;
    const view = this.#views.get(answer);
    this.#answer = null;
    view.busy = false;
    if (answer.content === "" && (problem || stopped)) {
      this.#takeBack();
    } else {
      answer.note = problem ? "Not complete: the answer broke off." : stopped ? "Stopped."
        : finish === "length" ? "Cut at max tokens." : undefined;
      view.draw();
    }
    this.#replaced = null;
    this.#refresh();
    this.remember();
  }

  /** Nothing came: what the answer was to replace is there again, and a message back where it was written. */
  #takeBack() {
    this.#drop(this.#messages.length - 1);
    const asked = this.#messages.at(-1);
    const replaced = this.#replaced ?? [];
    if (replaced[0]?.role !== "assistant" && !this.draft.value) {
      this.#drop(this.#messages.length - 1);
      this.#draft(asked.content);
    } else if (replaced[0]?.role === "user") {
      this.#drop(this.#messages.length - 1);
    } else if (!replaced.length) {
      asked.note = "Not answered.";
      this.#views.get(asked).draw();
    }
    for (const message of replaced) this.#add(message);
  }

  focus() {
    this.draft.focus();
  }

  redraw() {
    for (const view of this.#views.values()) view.draw();
  }

  dismiss() {
    return false;
  }

  remember() {
    state.chat.system = this.system.value;
    state.chat.draft = this.draft.value;
    this.draft.parentElement.dataset.text = this.draft.value; // its copy makes the text area grow
    save();
  }

  /** Ask anew from a changed message -> whether that was possible. */
  edit(message, text) {
    if (this.#answer) return false;
    this.#replaced = this.#dropFrom(this.#messages.indexOf(message));
    this.#add({ role: "user", content: text });
    this.run.start();
    return true;
  }

  again(message) {
    if (this.#answer) return;
    this.#replaced = this.#dropFrom(this.#messages.indexOf(message));
    this.run.start();
  }

  #add(message) {
    this.#messages.push(message);
    return this.#show(message);
  }

  #show(message) {
    const view = new MessageView(message, this);
    this.#views.set(message, view);
    this.log.append(view.element);
    return view;
  }

  #drop(index) {
    const [message] = this.#messages.splice(index, 1);
    this.#views.get(message).element.remove();
    this.#views.delete(message);
  }

  /** -> the messages that were there from this one on. */
  #dropFrom(index) {
    const dropped = this.#messages.slice(index);
    while (this.#messages.length > index) this.#drop(this.#messages.length - 1);
    this.#refresh();
    return dropped;
  }

  #clear() {
    this.#dropFrom(0);
    this.remember();
    this.focus();
  }

  #draft(text) {
    this.draft.value = text;
    this.remember();
    this.draft.focus();
  }

  #refresh() {
    this.empty.hidden = this.#messages.length > 0;
    this.newButton.disabled = this.#messages.length === 0 || this.#answer !== null;
  }

  #keys(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    event.stopPropagation();
    this.run.start();
  }

  /** Stay at the end while the answer grows, unless the reader has scrolled up. */
  #follow() {
    const { scroll } = this;
    if (scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 160) scroll.scrollTop = scroll.scrollHeight;
  }
}
