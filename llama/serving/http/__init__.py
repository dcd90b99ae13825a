"""The HTTP server: several protocols, each one a door, in front of one `AsyncEngine`. Extra [server].

| file | holds |
|---|---|
| `settings`, `server` | what an operator sets; uvicorn in the event loop of `Llama.serve`, from warm-up to drain |
| `connection` | uvicorn's connection to a client, with limits for the head of a request |
| `app`, `routes` | the ASGI application; a door's table of routes |
| `guard`, `addresses` | keys, hosts, origins, request ids; addresses to listen on, names in Host headers |
| `metrics`, `operations` | numbers for Prometheus; /health and /metrics |
| `service`, `outputs` | what doors ask of the engine: texts become prompts and requests; a `Run` and its outputs |
| `bodies`, `problems`, `replies` | reading a body; errors; answers, whole or streamed |
| `openai/`, `llamacpp/`, `tgi/`, `mistral`, `ollama/` | the doors: each has a `FAMILY` and its `ROUTES` |
| `messages`, `text_fim`, `other_samplers` | what several doors read: chats, infilling as text, llama.cpp's samplers |
| `answer_fields`, `token_texts`, `response_fields` | what several doors write |
| `playground/` | the page that `serve --playground` shows, and `codellama playground` |
| `ray_serve` | replicas behind one address, extra [ray] |

A door translates its protocol's body into requests, and what they give back into its protocol's answer. No
door imports another one: what two of them need is in a file of this folder.
"""
