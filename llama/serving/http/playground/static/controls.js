// The sampling controls of the active tab, and what a request says because of them.

import { el } from "./dom.js";
import { samplingDefaults, save, state } from "./store.js";

const RANGES = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, hint: "0 takes the likeliest token" },
  { name: "top_p", label: "Top p", min: 0.05, max: 1, step: 0.01, hint: "Only the likeliest tokens that add up to p" },
  { name: "top_k", label: "Top k", min: 0, max: 200, step: 1, hint: "Only the k likeliest tokens; 0 is all" },
  { name: "max_tokens", label: "Max tokens", min: 1, max: 2048, step: 1, hint: "The answer is cut there" },
];

export class Controls {
  #tab = null;
  #fields = new Map();

  constructor(host, { changed }) {
    this.changed = changed;
    const fields = RANGES.map((range) => this.#range(range));
    const seed = this.#text("seed", "Seed", "Random", "The same seed draws the same text",
      { inputMode: "numeric" });
    const stop = this.#text("stop", "Stop at", "One text a line", "\\n is a line break; the text is left out",
      { rows: 2 });
    this.reset = el("button", { type: "button", className: "plain", on: { click: () => {
      state.sampling[this.#tab] = samplingDefaults(this.#tab);
      this.show(this.#tab);
      save();
    } } }, "Reset to defaults");
    host.append(...fields, seed, stop, this.#probabilities(), this.reset);
  }

  /** Show a tab's values. */
  show(tab) {
    this.#tab = tab;
    const values = state.sampling[tab];
    for (const [name, inputs] of this.#fields) for (const input of inputs) input.value = values[name];
    this.#greedy();
  }

  /** No answer can be longer than the model's context. */
  limit(context) {
    if (!context) return;
    for (const input of this.#fields.get("max_tokens")) input.max = context;
  }

  /** The fields of a request that the controls stand for. */
  request() {
    const values = state.sampling[this.#tab];
    const { temperature, top_p: topP, top_k: topK, max_tokens: most, seed } = values;
    const body = { max_tokens: most, temperature };
    if (temperature > 0 && topP < 1) body.top_p = topP;
    if (temperature > 0 && topK > 0) body.top_k = topK;
    if (seed !== "") body.seed = Number(seed);
    const stop = values.stop.split("\n").filter((line) => line !== "").map(unescaped);
    if (stop.length) body.stop = stop;
    return body;
  }

  #range({ name, label, hint, ...limits }) {
    const id = `sampling-${name}`;
    const number = el("input", { id, type: "number", ...limits, "aria-describedby": `${id}-hint` });
    const slider = el("input", { type: "range", ...limits, ariaLabel: label, tabIndex: -1 });
    const set = (value, from) => {
      if (from !== number) number.value = value;
      if (from !== slider) slider.value = value;
      state.sampling[this.#tab][name] = value;
      this.#greedy();
      save();
    };
    slider.addEventListener("input", () => set(slider.valueAsNumber, slider));
    number.addEventListener("input", () => {
      const value = number.valueAsNumber;
      if (value >= Number(number.min) && value <= Number(number.max)) set(whole(value), number);
    });
    // What cannot be is put right when the field is left.
    number.addEventListener("change", () => {
      const value = Number.isNaN(number.valueAsNumber) ? state.sampling[this.#tab][name] : number.valueAsNumber;
      set(Math.min(Math.max(whole(value), Number(number.min)), Number(number.max)), null);
    });
    const whole = (value) => (limits.step === 1 ? Math.round(value) : value);
    this.#fields.set(name, [slider, number]);
    return el("div", { className: "field range", id: `${id}-field` },
      el("label", { htmlFor: id }, label), number, slider, el("p", { className: "hint", id: `${id}-hint` }, hint));
  }

  #text(name, label, placeholder, hint, more) {
    const id = `sampling-${name}`;
    const kind = more.rows ? "textarea" : "input";
    const input = el(kind, { id, placeholder, spellcheck: false, autocomplete: "off", ...more,
      "aria-describedby": `${id}-hint` });
    input.addEventListener("input", () => {
      if (name === "seed") input.value = input.value.replace(/\D/g, "").slice(0, 15);
      state.sampling[this.#tab][name] = input.value;
      save();
    });
    this.#fields.set(name, [input]);
    return el("div", { className: "field" },
      el("label", { htmlFor: id }, label), input, el("p", { className: "hint", id: `${id}-hint` }, hint));
  }

  #probabilities() {
    const toggle = el("input", { id: "probabilities", type: "checkbox", role: "switch",
      checked: state.probabilities, on: { change: () => {
        state.probabilities = toggle.checked;
        save();
        this.changed();
      } } });
    const number = el("input", { id: "alternatives", type: "number", min: 0, max: 20, step: 1,
      value: state.alternatives, on: { change: () => {
        state.alternatives = Math.min(Math.max(Math.round(number.valueAsNumber) || 0, 0), 20);
        number.value = state.alternatives;
        save();
      } } });
    const legend = ["≥ 90 %", "≥ 50 %", "≥ 20 %", "≥ 5 %", "< 5 %"].map(
      (text, i) => el("li", { className: `p${i}` }, text));
    return el("div", { className: "field probabilities" },
      el("label", { htmlFor: "probabilities" }, "Token probabilities"), toggle,
      el("ol", { className: "legend", ariaLabel: "Colours" }, ...legend),
      el("label", { htmlFor: "alternatives" }, "Alternatives"), number);
  }

  /** At temperature 0 nothing is drawn, so these say nothing. */
  #greedy() {
    const greedy = state.sampling[this.#tab].temperature === 0;
    for (const name of ["top_p", "top_k", "seed"]) {
      for (const input of this.#fields.get(name)) {
        input.closest(".field").classList.toggle("unused", greedy);
      }
    }
  }
}

function unescaped(text) {
  return text.replace(/\\([nt\\])/g, (_, letter) => ({ n: "\n", t: "\t", "\\": "\\" })[letter]);
}
