// The server: what it can do, and answers as they stream. Every failure becomes a `Problem` in plain words.

import { events } from "./sse.js";
import { bytesOf, spelled } from "./tokens.js";
import { apiKey } from "./store.js";

/** A failure that people can read. `kind`: gone, lost, key, refused, busy, starting, failed, unable. */
export class Problem extends Error {
  constructor(kind, message, retryAfter = null) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter;
  }
}

const GONE = "The server cannot be reached. It may have stopped, or the connection is down. Your text is kept.";
const LOST = "The connection was lost before the answer was complete. What had arrived is kept.";

/** Paths are relative to the page, so that it also works below a path of another web server. */
function headers() {
  const key = apiKey();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, { headers: headers(), cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("gone", GONE);
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  let said = "";
  try {
    said = message(await answer.json());
  } catch {
    // Not every proxy on the way answers in JSON; the status says enough.
  }
  const retryAfter = Number(answer.headers.get("Retry-After")) || null;
  const quoted = said ? `: ${said}` : ".";
  switch (answer.status) {
    case 401: {
      const why = apiKey() ? "The server does not accept this API key." : "The server asks for an API key.";
      return new Problem("key", why);
    }
    case 429:
      return new Problem("busy", "The server is busy. Try again in a moment.", retryAfter);
    case 502:
    case 504:
      return new Problem("gone", said ? `The server cannot be reached: ${said}. Your text is kept.` : GONE);
    case 503:
      return new Problem("starting", `The server is not ready: it is starting or shutting down${quoted}`);
    default: {
      const what = answer.status < 500 ? "The server refused the request" : "The server failed";
      const kind = answer.status < 500 ? "refused" : "failed";
      return new Problem(kind, said ? `${what}: ${said}` : `${what} (status ${answer.status}).`);
    }
  }
}

/** The message of an error in OpenAI's shape, or in FastAPI's. */
function message(body) {
  const said = body?.error?.message ?? body?.error ?? body?.detail ?? "";
  return typeof said === "string" ? said.replace(/\.$/, "") : JSON.stringify(said);
}

/** What the server serves: {name, context, infill, chat}; infill and chat are true or the reason why not. */
export async function model() {
  const listed = await (await ask("v1/models")).json();
  const first = listed?.data?.[0];
  if (!first) throw new Problem("failed", "The server lists no model.");
  const { capabilities = {} } = first;
  return {
    name: String(first.id),
    context: first.max_model_len ?? first.meta?.n_ctx ?? null,
    infill: capabilities.infill === false
      ? "Its vocabulary has no infilling pieces. The 7B and 13B models, base and Instruct, can infill."
      : true,
    chat: chatOf(capabilities),
  };
}

function chatOf({ chat_format: format, capability = "chat" }) {
  if (format === null || format === false) return "It knows no chat format. An Instruct model can chat.";
  if (capability !== "chat") return `The server was started with --capability ${capability}.`;
  return true;
}

/** Where the server is, if not where the page comes from. */
export async function server() {
  try {
    return (await (await fetch("playground/config", { cache: "no-store" })).json()).server;
  } catch {
    return null;
  }
}

/**
 * The answer to a request, in steps {text, tokens, finish, usage}; each may be absent.
 *
 * tokens: [{text | bytes, logprob, top: [{text, logprob}]}]; a token comes with the end of its text, or after it.
 */
export async function* stream(path, request, signal) {
  const options = { stream: true, stream_options: { include_usage: true } };
  const answer = await ask(path, {
    method: "POST",
    body: JSON.stringify({ ...request, ...options }),
    signal,
  });
  let finished = false;
  try {
    for await (const data of events(answer.body)) {
      if (data === "[DONE]") break;
      const step = read(JSON.parse(data));
      finished ||= Boolean(step.finish);
      yield step;
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Problem) throw error;
    throw new Problem("lost", LOST);
  }
  if (!finished) throw new Problem("lost", LOST);
}

function read(chunk) {
  if (chunk.error) throw new Problem("failed", `The server stopped the answer: ${message(chunk)}`);
  const choice = chunk.choices?.[0];
  return {
    text: choice?.text ?? choice?.delta?.content ?? "",
    tokens: choice?.logprobs ? tokensOf(choice.logprobs) : [],
    finish: choice?.finish_reason ?? null,
    usage: chunk.usage ?? null,
  };
}

/** Log-probabilities of /v1/completions (parallel lists) or of /v1/chat/completions (a list of records). */
function tokensOf(logprobs) {
  if (logprobs.content) {
    return logprobs.content.map((each) => ({
      ...textOrBytes(each),
      logprob: each.logprob,
      top: (each.top_logprobs ?? []).map((one) => ({ ...textOrBytes(one), logprob: one.logprob })),
    }));
  }
  return (logprobs.tokens ?? []).map((token, i) => ({
    ...spelled(token),
    logprob: logprobs.token_logprobs?.[i] ?? null,
    top: Object.entries(logprobs.top_logprobs?.[i] ?? {}).map(([text, logprob]) => (
      { ...spelled(text), logprob })),
  }));
}

function textOrBytes({ token, bytes }) {
  const half = bytes && token.includes("\ufffd"); // a part of a character: only its bytes say which
  return half ? bytesOf(bytes) : spelled(token);
}
