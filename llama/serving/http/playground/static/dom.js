// Building elements. Strings become text nodes, never HTML.

/** An element; of the properties `on` holds listeners, `hidden` and such are set, the rest become attributes. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "on") {
      for (const [type, listener] of Object.entries(value)) made.addEventListener(type, listener);
    } else if (name in made && name !== "list" && name !== "form") {
      made[name] = value;
    } else if (value !== undefined && value !== null && value !== false) {
      made.setAttribute(name, value === true ? "" : value);
    }
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export function byId(id) {
  return document.getElementById(id);
}

/** Says something to a screen reader, and to nobody else. */
export function announce(text) {
  byId("announcer").textContent = text;
}

/** Puts text on the clipboard, and says so on the button for a moment. */
export async function copy(text, button) {
  const label = button.querySelector(".label") ?? button;
  const before = button.dataset.label ?? label.textContent;
  button.dataset.label = before;
  try {
    await navigator.clipboard.writeText(text);
    label.textContent = "Copied";
  } catch {
    label.textContent = copyBySelection(text) ? "Copied" : "Could not copy";
  }
  announce(label.textContent);
  setTimeout(() => { label.textContent = before; }, 1500);
}

/** The clipboard interface exists on HTTPS and localhost only; this way works on a plain HTTP address too. */
function copyBySelection(text) {
  const focused = document.activeElement;
  const area = el("textarea", { class: "offscreen", value: text });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}
