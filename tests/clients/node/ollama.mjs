// The ollama package. Argument: what to ask, as JSON. Prints the answers as JSON.
import { Ollama } from "ollama";

const { url, model, tokens, completion, prefix, suffix, chat } = JSON.parse(process.argv[2]);
const client = new Ollama({ host: url });
const options = { num_predict: tokens, temperature: 0 };
const bodies = {
  completion: { model, prompt: completion, raw: true, options },
  infilling: { model, prompt: prefix, suffix, options },
};
const messages = [{ role: "user", content: chat }];

const whole = {}, streamed = {};
for (const [kind, body] of Object.entries(bodies)) {
  whole[kind] = (await client.generate(body)).response;
  streamed[kind] = "";
  for await (const part of await client.generate({ ...body, stream: true })) {
    streamed[kind] += part.response;
  }
}
whole.chat = (await client.chat({ model, messages, options })).message.content;
streamed.chat = "";
for await (const part of await client.chat({ model, messages, options, stream: true })) {
  streamed.chat += part.message.content;
}
const insert = (await client.show({ model })).template.includes(".Suffix");
let error;
try {
  await client.generate({ model, prompt: completion, images: ["aGVsbG8="] });
} catch (caught) {
  error = caught.message;
}
console.log(JSON.stringify({ whole, streamed, insert, error }));
