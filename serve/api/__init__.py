"""The OpenAI-compatible HTTP API: text in, text out. Below it there are only token ids.

`app` puts the routes together and `server` runs them. A completion's way is `security` (may it be sent?) → `schemas`
(what may its body say?) → `generate` (names, tokens, routing, admission) → `text` (tokens to text, up to a stop string)
→ `openai` (the objects of OpenAI's and Anthropic's APIs). `messages` reads tool calls and reasoning out of a reply's
text, `grammar` keeps it to a structure, and `admin` loads experts.
"""
