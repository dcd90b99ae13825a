// What is remembered: the page's state in localStorage, the API key in sessionStorage, that is, until the tab closes.

import { EXAMPLES } from "./examples.js";

const STATE = "codellama-playground";
const KEY = "codellama-playground-key";

const DEFAULTS = {
  tab: "completion",
  theme: "auto",
  completion: { text: EXAMPLES.completion[0].text },
  infilling: {
    text: EXAMPLES.infilling[0].text,
    start: EXAMPLES.infilling[0].cursor,
    end: EXAMPLES.infilling[0].cursor,
  },
  chat: { system: "", messages: [], draft: "" },
  sampling: {
    completion: { temperature: 0.2, top_p: 0.95, top_k: 0, max_tokens: 256, seed: "", stop: "" },
    infilling: { temperature: 0, top_p: 0.95, top_k: 0, max_tokens: 128, seed: "", stop: "" },
    chat: { temperature: 0.6, top_p: 0.95, top_k: 0, max_tokens: 512, seed: "", stop: "" },
  },
  probabilities: true,
  alternatives: 5,
};

/** What is stored where its types are those of the defaults, else the defaults: a page of another day wrote it. */
function merged(defaults, stored) {
  if (Array.isArray(defaults)) return Array.isArray(stored) ? stored : [...defaults];
  if (typeof defaults !== "object") return typeof stored === typeof defaults ? stored : defaults;
  const from = stored !== null && typeof stored === "object" ? stored : {};
  return Object.fromEntries(
    Object.entries(defaults).map(([name, value]) => [name, merged(value, from[name])]));
}

function load() {
  let stored = null;
  try {
    stored = JSON.parse(localStorage.getItem(STATE));
  } catch {
    // Nothing is stored, or it may not be read (private windows): start anew.
  }
  const state = merged(DEFAULTS, stored);
  if (!(state.tab in state.sampling)) state.tab = DEFAULTS.tab;
  state.chat.messages = state.chat.messages.filter(
    (each) => ["user", "assistant"].includes(each?.role) && typeof each.content === "string");
  return state;
}

export const state = load();

let timer = null;

/** Remember the state, soon: many changes in a row are one write. */
export function save() {
  timer ??= setTimeout(saveNow, 400);
}

export function saveNow() {
  clearTimeout(timer);
  timer = null;
  const messages = state.chat.messages.map(({ role, content, note }) => ({ role, content, note }));
  try {
    localStorage.setItem(STATE, JSON.stringify({ ...state, chat: { ...state.chat, messages } }));
  } catch {
    // Full, or not allowed: the page works on, and forgets.
  }
}

export function samplingDefaults(tab) {
  return { ...DEFAULTS.sampling[tab] };
}

export function apiKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

export function setApiKey(key) {
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch {
    // Not allowed: the server will ask again.
  }
}
