// Tokens of an answer: which characters of its text each one stands for, and how likely it was.

const BYTES = /^bytes:((?:\\x[0-9a-fA-F]{2})+)$/;

/** A token from its spelling: the text, or for a part of a character `bytes:\xNN`. */
export function spelled(token) {
  const found = BYTES.exec(token);
  if (!found) return { text: token };
  return bytesOf(found[1].slice(2).split("\\x").map((digits) => parseInt(digits, 16)));
}

export function bytesOf(bytes) {
  return { text: bytes.map((byte) => `<${byte.toString(16).toUpperCase().padStart(2, "0")}>`).join(""), bytes };
}

/** A text area has no CR: it makes LF of CRLF, which would move all places behind. */
export function withoutReturns(text) {
  return text.replaceAll("\r", "");
}

/**
 * Gives each token its place in the text that streams in.
 *
 * Text may come before its token (the server holds a token back until all of its text is out), and one character
 * may be several tokens. What fits nowhere is left without a token rather than put in the wrong place.
 */
export class Aligner {
  text = "";
  count = 0; // tokens so far
  #end = 0; // the text up to here has its tokens
  #bytes = []; // tokens that are the beginning of a character

  /** -> marks {start, end, logprob, top, text}: places in the whole text so far. */
  add(text, tokens) {
    this.text += withoutReturns(text);
    this.count += tokens.length;
    return tokens.map((token) => this.#place(token)).filter(Boolean);
  }

  #place(given) {
    if (given.bytes) return this.#placeBytes(given);
    const token = { ...given, text: withoutReturns(given.text) };
    this.#bytes = [];
    if (token.text === "") return null;
    const bare = this.#end === 0 && token.text.startsWith(" ") ? token.text.slice(1) : token.text;
    for (const text of [token.text, bare]) {
      if (text && this.text.startsWith(text, this.#end)) return this.#mark(this.#end, text, token);
    }
    const later = this.text.indexOf(token.text, this.#end);
    return later >= 0 && later - this.#end < 32 ? this.#mark(later, token.text, token) : null;
  }

  #placeBytes(token) {
    this.#bytes.push(token);
    let character;
    try {
      character = new TextDecoder("utf-8", { fatal: true }).decode(
        new Uint8Array(this.#bytes.flatMap((each) => each.bytes)));
    } catch {
      return null; // more bytes follow
    }
    const parts = this.#bytes;
    this.#bytes = [];
    if (!this.text.startsWith(character, this.#end)) return null;
    // One character of several tokens: as likely as all of them together.
    const logprob = parts.reduce((sum, each) => sum + (each.logprob ?? 0), 0);
    return this.#mark(this.#end, character, { logprob, top: parts.length === 1 ? token.top : [] });
  }

  #mark(start, text, { logprob, top }) {
    this.#end = start + text.length;
    return { start, end: this.#end, logprob, top, text };
  }
}

/** Which of the five colours of the legend a token gets; 0 is likely, 4 is not. */
export function level(logprob) {
  const p = Math.exp(logprob);
  return p >= 0.9 ? 0 : p >= 0.5 ? 1 : p >= 0.2 ? 2 : p >= 0.05 ? 3 : 4;
}

export function percent(logprob) {
  const p = 100 * Math.exp(logprob);
  if (p > 0 && p < 0.1) return "< 0.1 %";
  return `${p >= 99.95 ? 100 : p.toFixed(1)} %`;
}

/** A token's text with what cannot be seen made visible. */
export function visible(text) {
  return text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "∅";
}
