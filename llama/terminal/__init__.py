"""At a terminal: chat, completion and infilling of files, batches; with a model in this process or a server.

| file | holds |
|---|---|
| `backend` | what can be asked, and `Backend`: what answers it |
| `local`, `remote`, `sse` | the two backends: a `Llama` with its AsyncEngine, and a server over HTTP; its events |
| `running` | from DIR or URL to a backend, on all ranks, and how signals end it |
| `chat`, `commands`, `conversation` | the chat program, its commands, its history |
| `readers`, `line_editor` | the user's input: lines of a pipe, or prompt_toolkit's editor |
| `answers` | the model's text on stdout |
| `fill`, `files` | `complete` and `infill`: the cursor in a file; reading it, and writing it in place |
| `batch`, `batch_files` | OpenAI's batch lines: requests in flight, and files that can be resumed |

The model's text goes to stdout and everything else to stderr, so that an answer can be piped and copied. The
verbs are in `llama/cli/`. prompt_toolkit and httpx, the extra [terminal], are imported when they are needed.
"""
