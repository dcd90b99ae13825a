"""The HTTP server: every door speaks another protocol, all lead to the one `AsyncEngine`. Extra [server].

| file | holds |
|---|---|
| `settings`, `server` | what an operator sets; uvicorn in the event loop of `Llama.serve`, from warm-up to drain |
| `app`, `guard` | the ASGI application: routes of all doors; keys, hosts, origins, request ids |
| `addresses` | addresses to listen on, names in Host headers |
| `playground/` | the page that `serve --playground` shows, and `codellama playground` |
| `service` | what doors ask of the engine: prompts become requests, requests become a `Run` |
| `bodies`, `problems`, `replies` | reading a body; errors; answers, whole or streamed |
| `token_texts`, `response_fields`, `chat_templates` | what several doors tell: single tokens, picked fields, formats |
| `openai/`, `llamacpp/`, `tgi/`, `mistral`, `ollama/`, `operations` | the doors: each has a `FAMILY` and its `ROUTES` |
| `token_texts`, `chat_templates`, `text_fim`, `other_samplers`, `response_fields` | what several doors need |

A door translates its protocol's body into requests, and what they give back into its protocol's answer. No
door imports another family's.
"""
