// The openai package. Argument: what to ask, as JSON. Prints the answers as JSON.
import OpenAI from "openai";

const { url, model, tokens, completion, prefix, suffix, chat } = JSON.parse(process.argv[2]);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "any", maxRetries: 0 });
const greedy = { model, max_tokens: tokens, temperature: 0 };
const bodies = { completion: { prompt: completion }, infilling: { prompt: prefix, suffix } };
const messages = [{ role: "user", content: chat }];

const whole = {}, streamed = {};
for (const [kind, body] of Object.entries(bodies)) {
  whole[kind] = (await client.completions.create({ ...body, ...greedy })).choices[0].text;
  streamed[kind] = "";
  for await (const chunk of await client.completions.create({ ...body, ...greedy, stream: true })) {
    streamed[kind] += chunk.choices[0].text;
  }
}
const answer = await client.chat.completions.create({ messages, ...greedy });
whole.chat = answer.choices[0].message.content;
streamed.chat = "";
let usage;
const options = { stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create({ messages, ...greedy, ...options })) {
  streamed.chat += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage?.completion_tokens ?? usage;
}
let error;
try {
  await client.completions.create({ prompt: completion, ...greedy, no_such_field: 1 });
} catch (caught) {
  error = { name: caught.constructor.name, param: caught.param };
}
const models = (await client.models.list()).data.map((each) => each.id);
console.log(JSON.stringify({ whole, streamed, usage, error, models }));
