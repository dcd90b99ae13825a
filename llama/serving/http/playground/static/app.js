// The page: tabs, the one run at a time, its figures and its problems, and what the server can do.

import { model, Problem, server, stream } from "./api.js";
import { Chat } from "./chat.js";
import { Completion } from "./completion.js";
import { Controls } from "./controls.js";
import { announce, byId } from "./dom.js";
import { askForKey, wireDialogs } from "./dialogs.js";
import { Infilling } from "./infilling.js";
import { dismiss, isOpen } from "./inspector.js";
import { clearPassing, clearProblem, showProblem } from "./problem.js";
import { save, saveNow, state } from "./store.js";
import { Stats } from "./stats.js";
import { Aligner, withoutReturns } from "./tokens.js";

const RUN_KEY = /Mac|iPhone|iPad/.test(navigator.platform) ? "⌘ ⏎" : "Ctrl ⏎";
const RETRY = 4000; // milliseconds between two looks for a server that was gone

const stats = new Stats(byId("stats"));
const controls = new Controls(byId("controls"), { changed: showProbabilities });
const actions = { start, stop, changed: showRun, curl };
let running = null; // the AbortController of the run
let looking = null; // the timer that looks for the server again
let modelName = null;
let tabs = null;
tabs = {
  completion: new Completion(byId("panel-completion"), actions),
  infilling: new Infilling(byId("panel-infilling"), actions),
  chat: new Chat(byId("panel-chat"), actions),
};

function active() {
  return tabs[state.tab];
}

function request() {
  const { path, body } = active().request();
  const scores = {};
  if (state.probabilities && state.tab === "chat") {
    Object.assign(scores, { logprobs: true, top_logprobs: state.alternatives });
  } else if (state.probabilities) {
    scores.logprobs = state.alternatives;
  }
  // This project's server takes any name; others want their own.
  const name = modelName === null ? {} : { model: modelName };
  return { path, body: { ...name, ...body, ...controls.request(), ...scores } };
}

async function start() {
  if (running) return;
  const tab = active();
  const refused = tab.unavailable ?? tab.refusal?.();
  if (refused) {
    showProblem(new Problem("unable", refused));
    return;
  }
  clearProblem();
  dismiss();
  const asked = request();
  running = new AbortController();
  const { signal } = running;
  const outcome = { stopped: false, finish: null, problem: null };
  const aligner = new Aligner();
  stats.begin();
  tab.begin();
  showRun();
  announce("Running");
  try {
    for await (const step of stream(asked.path, asked.body, signal)) {
      const marks = aligner.add(step.text, step.tokens);
      const text = withoutReturns(step.text);
      if (text || marks.length) tab.write(text, marks);
      outcome.finish = step.finish ?? outcome.finish;
      stats.step(step, aligner.count);
    }
  } catch (error) {
    if (signal.aborted) outcome.stopped = true;
    else outcome.problem = error;
  }
  running = null;
  tab.end(outcome);
  stats.end(outcome);
  showRun();
  finish(outcome);
}

function finish({ stopped, problem }) {
  if (problem) {
    if (!(problem instanceof Problem)) console.error(problem);
    const known = problem instanceof Problem
      ? problem : new Problem("failed", `This page failed: ${problem.message}`);
    showProblem(known, { again: start, key: askForKey });
    if (["gone", "lost", "starting"].includes(known.kind)) connect();
  } else {
    announce(stopped ? "Stopped" : `Done: ${stats.words}`);
  }
}

function stop() {
  running?.abort();
}

/** The request as a command line; the key is not in it. */
function curl() {
  const { path, body } = request();
  const quoted = JSON.stringify({ ...body, stream: true }).replaceAll("'", "'\\''");
  return `curl -N ${new URL(path, document.baseURI)} -H 'Content-Type: application/json' -d '${quoted}'`;
}

function showRun() {
  if (!tabs) return; // a tab that is being made says that it has changed
  const button = byId("run");
  button.classList.toggle("stop", running !== null);
  byId("run-label").textContent = running ? "Stop" : active().verb;
  byId("run-key").textContent = running ? "Esc" : active().key ?? RUN_KEY;
  button.disabled = !running && active().unavailable !== null;
  for (const each of document.querySelectorAll("[role=tab]")) each.disabled = running !== null;
}

function showProbabilities() {
  document.body.classList.toggle("probabilities", state.probabilities);
  dismiss();
  tabs.chat.redraw();
}

function showTab(name, focus = false) {
  state.tab = name;
  save();
  for (const [each, tab] of Object.entries(tabs)) {
    const button = byId(`tab-${each}`);
    button.setAttribute("aria-selected", String(each === name));
    button.tabIndex = each === name ? 0 : -1;
    tab.host.hidden = each !== name;
    if (each === name && focus) button.focus();
  }
  byId("tools").replaceChildren(active().tools);
  controls.show(name);
  dismiss();
  clearProblem();
  stats.clear();
  showRun();
  if (active().unavailable) showProblem(new Problem("unable", active().unavailable));
  if (name === "chat") active().redraw();
  else active().editor.draw();
}

/** Ask what the server serves; while it does not answer, ask again from time to time. */
async function connect() {
  clearTimeout(looking);
  const chip = byId("model");
  try {
    const found = await model();
    modelName = found.name;
    chip.dataset.state = "ready";
    byId("model-name").textContent = found.name;
    const context = found.context ? `, ${found.context.toLocaleString("en")} tokens of context` : "";
    const elsewhere = (await server()) ?? null;
    chip.title = `${found.name}${context}${elsewhere ? `, served by ${elsewhere}` : ""}`;
    controls.limit(found.context);
    allow("infilling", found.infill, "This model cannot infill.");
    allow("chat", found.chat, "This model cannot chat.");
  } catch (problem) {
    chip.dataset.state = problem.kind === "starting" ? "wait" : "gone";
    byId("model-name").textContent = { starting: "Starting", key: "Needs a key" }[problem.kind] ?? "Not connected";
    // What is shown already, such as the end of a run, says more.
    if (byId("problem").hidden || problem.kind === "key") {
      showProblem(problem, { again: connect, key: askForKey, passes: true });
    }
    if (problem.kind !== "key") looking = setTimeout(connect, RETRY);
    return;
  }
  clearPassing();
}

function allow(name, able, sentence) {
  const button = byId(`tab-${name}`);
  const reason = able === true ? null : `${sentence} ${able}`;
  if (tabs[name].unavailable === reason) return; // asked again, and nothing has changed
  tabs[name].unavailable = reason;
  tabs[name].host.classList.toggle("unavailable", reason !== null);
  button.setAttribute("aria-disabled", String(reason !== null));
  button.title = reason ?? "";
  if (state.tab === name) showTab(name);
}

function wireTabs() {
  const names = Object.keys(tabs);
  names.forEach((name, i) => {
    const button = byId(`tab-${name}`);
    button.addEventListener("click", () => showTab(name));
    button.addEventListener("keydown", (event) => {
      const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: names.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      showTab(names.at(to % names.length), true);
    });
  });
}

function wireKeys() {
  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      start();
    } else if (event.key === "Escape") {
      if (running) stop();
      else if (isOpen()) {
        dismiss();
        active().focus();
      } else if (!byId("controls").contains(document.activeElement)) {
        active().dismiss?.();
      }
    }
  });
}

wireTabs();
wireKeys();
wireDialogs(connect);
byId("run").addEventListener("click", () => (running ? stop() : start()));
window.addEventListener("pagehide", saveNow);
const wide = window.matchMedia("(min-width: 60rem)"); // as in the style sheet
const openSide = () => { byId("side").open = wide.matches; };
wide.addEventListener("change", openSide);
openSide();
showProbabilities();
showTab(state.tab);
connect();
