// Continue's adapters. Argument: what to ask, as JSON. Prints each provider's answers as JSON.
import { constructLlmApi } from "@continuedev/openai-adapters";

const { url, model, tokens, completion, prefix, suffix, chat } = JSON.parse(process.argv[2]);
const signal = new AbortController().signal;
const greedy = { model, max_tokens: tokens, temperature: 0 };
const messages = [{ role: "user", content: chat }];
// As Continue fills them in for infilling.
const more = { top_p: 1, frequency_penalty: 0, presence_penalty: 0, stop: ["/src/", "#- coding: utf-8", "```"] };

const answers = {};
for (const provider of ["mistral", "openai", "vllm", "llama.cpp", "ollama", "lmstudio", "llamastack"]) {
  const api = constructLlmApi({ provider, apiBase: `${url}/v1/` });
  const answer = { completion: "", infilling: "", chat: "" };
  for await (const chunk of api.completionStream({ ...greedy, prompt: completion, stream: true }, signal)) {
    answer.completion += chunk.choices[0].text;
  }
  for await (const chunk of api.fimStream({ ...greedy, ...more, prompt: prefix, suffix, stream: true }, signal)) {
    answer.infilling += chunk.choices[0].delta.content;
  }
  for await (const chunk of api.chatCompletionStream({ ...greedy, messages, stream: true }, signal)) {
    answer.chat += chunk.choices[0]?.delta?.content ?? "";
  }
  answers[provider] = answer;
}
console.log(JSON.stringify(answers));
