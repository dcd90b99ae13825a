// The API key, the keyboard shortcuts and the theme.

import { byId } from "./dom.js";
import { icon } from "./icons.js";
import { apiKey, saveNow, setApiKey, state } from "./store.js";

const THEMES = { auto: "as the system", light: "light", dark: "dark" };

export function askForKey() {
  byId("key").value = apiKey();
  byId("key-dialog").showModal();
  byId("key").select();
}

/** changed: called when the key has changed. */
export function wireDialogs(changed) {
  const dialog = byId("key-dialog");
  const use = (key) => {
    setApiKey(key.trim());
    byId("key").value = "";
    dialog.close();
    changed();
  };
  byId("key-button").addEventListener("click", askForKey);
  byId("key-save").addEventListener("click", () => use(byId("key").value));
  byId("key-forget").addEventListener("click", () => use(""));
  byId("key").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // else it also presses the button that gets the focus back
    use(byId("key").value);
  });
  byId("help-button").addEventListener("click", () => byId("help-dialog").showModal());
  byId("help-close").addEventListener("click", () => byId("help-dialog").close());
  for (const each of document.querySelectorAll("dialog")) {
    each.addEventListener("click", (event) => {
      if (event.target === each) each.close(); // beside it
    });
  }
  byId("key-button").append(icon("key"));
  byId("help-button").append(icon("keyboard"));
  byId("theme-button").addEventListener("click", nextTheme);
  showTheme();
}

function nextTheme() {
  const names = Object.keys(THEMES);
  state.theme = names[(names.indexOf(state.theme) + 1) % names.length];
  saveNow();
  showTheme();
}

function showTheme() {
  const { theme } = state;
  if (theme === "auto" || !(theme in THEMES)) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const button = byId("theme-button");
  button.title = `Theme: ${THEMES[theme] ?? THEMES.auto}`;
  button.setAttribute("aria-label", button.title);
  button.replaceChildren(icon(theme in THEMES ? theme : "auto"));
}
