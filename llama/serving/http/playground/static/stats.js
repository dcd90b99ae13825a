// The figures of a run: tokens, their rate, the time to the first, and how it ended.

import { el } from "./dom.js";

export class Stats {
  #began = 0;
  #first = null;
  #last = null;
  #tokens = 0;
  #usage = null;
  #timer = null;

  constructor(host) {
    this.host = host;
  }

  /** What is shown, to be spoken. */
  get words() {
    return [...this.host.children].map((each) => each.textContent).join(", ");
  }

  begin() {
    this.#began = performance.now();
    this.#first = this.#last = this.#usage = null;
    this.#tokens = 0;
    this.#timer = setInterval(() => this.#show(), 200);
    this.#show();
  }

  /** A step of the answer; `tokens` is how many have come, 0 if the server does not say. */
  step({ text, usage }, tokens) {
    this.#tokens = tokens;
    this.#usage = usage ?? this.#usage;
    if (text) {
      this.#last = performance.now();
      this.#first ??= this.#last;
    }
  }

  end({ stopped, finish, problem }) {
    clearInterval(this.#timer);
    const how = problem ? "broke off" : stopped ? "stopped" : finish === "length" ? "cut at max tokens" : "complete";
    this.#show(how);
  }

  clear() {
    this.host.replaceChildren();
  }

  #show(how = null) {
    const parts = [];
    const count = this.#usage?.completion_tokens ?? this.#tokens;
    if (how && (count || this.#first)) parts.push([how, "how"]);
    if (this.#first === null && !how) parts.push([`waiting ${seconds(performance.now() - this.#began)}`, "wait"]);
    if (count) parts.push([`${count} ${count === 1 ? "token" : "tokens"}`, "count"]);
    // The first token's time is the prompt's; the rate is that of the others.
    const time = this.#last - this.#first;
    if (count > 1 && time > 0) parts.push([`${rate((1000 * (count - 1)) / time)} tokens/s`, "rate"]);
    if (this.#first !== null) parts.push([`first after ${seconds(this.#first - this.#began)}`, "first"]);
    if (this.#usage) {
      const cached = this.#usage.prompt_tokens_details?.cached_tokens;
      parts.push([`prompt ${this.#usage.prompt_tokens}${cached ? ` (${cached} cached)` : ""}`, "prompt"]);
    }
    this.host.replaceChildren(...parts.map(([text, name]) => el("span", { className: name }, text)));
  }
}

function seconds(time) {
  return time < 1000 ? `${Math.round(time)} ms` : `${(time / 1000).toFixed(1)} s`;
}

function rate(value) {
  return value >= 100 ? String(Math.round(value)) : value.toFixed(1);
}
