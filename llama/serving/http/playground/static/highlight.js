// Colours for code, line by line: strings, comments, numbers, keywords. A reader's aid, not a parser.

const PYTHON = new Set(
  ("False None True and as assert async await break case class continue def del elif else except finally for from"
    + " global if import in is lambda match nonlocal not or pass raise return try while with yield self").split(" "));
const BRACES = new Set(
  ("auto bool break case catch char class const continue default delete do double else enum export extends false"
    + " final float fn for func function if impl import in int interface let long match mut namespace new null"
    + " package private protected pub public return self short static struct super switch template this throw true"
    + " try type typedef unsigned use using var void while yield").split(" "));

// What a line is cut into. Text that none of these begins is skipped a character at a time.
const WORD = /[A-Za-z_]\w*/y;
const NUMBER = /(?:0[xX][\da-fA-F_]+|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?)/y;
const TRIPLE = /"""|'''/y;
const STRING = /"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`(?:[^`\\]|\\.)*`/y; // closed on its line, or it is an apostrophe

/** Whether a text is written in a language with braces and `//`, rather than in Python or a shell. */
export function hasBraces(text) {
  const braces = text.match(/[;{]\s*$/gm)?.length ?? 0;
  const colons = text.match(/:\s*$|^\s*(?:def|import|from|class)\b/gm)?.length ?? 0;
  return braces > colons;
}

/**
 * The spans {start, end, kind} of a line, and the state in which the next one begins.
 *
 * state: null, or what ends the string or comment that the line begins in.
 */
export function highlight(line, state, braces) {
  const spans = [];
  let at = 0;
  const take = (end, kind) => {
    spans.push({ start: at, end, kind });
    at = end;
  };
  const match = (pattern) => {
    pattern.lastIndex = at;
    return pattern.exec(line)?.[0] ?? null;
  };
  const until = (closing, kind, from) => {
    const found = line.indexOf(closing, from);
    take(found < 0 ? line.length : found + closing.length, kind);
    return found < 0 ? closing : null;
  };
  if (state) {
    state = until(state, state === "*/" ? "comment" : "string", 0);
  }
  while (at < line.length) {
    let found;
    if (braces ? line.startsWith("//", at) : line[at] === "#") {
      take(line.length, "comment");
    } else if (braces && line.startsWith("/*", at)) {
      state = until("*/", "comment", at + 2);
    } else if (!braces && (found = match(TRIPLE))) {
      state = until(found, "string", at + 3);
    } else if ((found = match(STRING))) {
      take(at + found.length, "string");
    } else if ((found = match(WORD))) {
      const end = at + found.length;
      if ((braces ? BRACES : PYTHON).has(found)) take(end, "keyword");
      else if (line[end] === "(") take(end, "call");
      else at = end;
    } else if ((found = match(NUMBER))) {
      take(at + found.length, "number");
    } else {
      at += 1;
    }
  }
  return { spans, state };
}
