// @huggingface/inference. Argument: what to ask, as JSON. Prints the answers as JSON.
import { InferenceClient } from "@huggingface/inference";

const { url, tokens, completion, chat } = JSON.parse(process.argv[2]);
const client = new InferenceClient(undefined, { endpointUrl: url });
const text = {
  inputs: completion,
  parameters: { max_new_tokens: tokens, do_sample: false, return_full_text: false, repetition_penalty: 1 },
};
const dialog = { messages: [{ role: "user", content: chat }], max_tokens: tokens, temperature: 0 };

const whole = {
  completion: (await client.textGeneration(text)).generated_text,
  chat: (await client.chatCompletion(dialog)).choices[0].message.content,
};
const streamed = { completion: "", chat: "" };
for await (const chunk of client.textGenerationStream(text)) {
  streamed.completion += chunk.choices[0].text;
}
for await (const chunk of client.chatCompletionStream(dialog)) {
  streamed.chat += chunk.choices[0].delta.content ?? "";
}
console.log(JSON.stringify({ whole, streamed }));
