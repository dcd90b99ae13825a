// Server-sent events, read from the body of a fetch.

/** The `data` of each event, as soon as its last byte is there. Pings, which are comments, are skipped. */
export async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const lines = new Lines();
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return; // what no blank line ended is not an event
      for (const line of lines.add(decoder.decode(value, { stream: true }))) {
        if (line === "") {
          if (data.length) yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the caller stopped reading: the connection is closed
  }
}

/** Cuts pieces of text into lines that end in LF, CR or CRLF, wherever the pieces end. */
class Lines {
  #rest = "";

  add(piece) {
    this.#rest += piece;
    // A CR at the very end may be the first half of a CRLF.
    const held = this.#rest.endsWith("\r") ? "\r" : "";
    const lines = this.#rest.slice(0, this.#rest.length - held.length).split(/\r\n|\n|\r/);
    this.#rest = lines.pop() + held;
    return lines;
  }
}
