"""The playground: a page for completion, infilling and chat, and what serves it.

| file | holds |
|---|---|
| `static/` | the page: HTML, CSS and ES modules as the browser reads them; no build step, no library, no other host |
| `pages` | the routes `/` and `/playground/...`, with a strict Content-Security-Policy |
| `proxy` | the same page on this machine for a server elsewhere: hands on the few paths that the page asks for |
| `local` | `codellama playground`: the proxy at a port of this machine, until it is interrupted |

The page speaks only the server's OpenAI routes. Never imports torch.
"""
