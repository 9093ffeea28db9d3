"""The OpenAI-compatible HTTP API: text in, text out. Below it there are only token ids.

`app` puts the routes together, `server` runs them, `service` is what the routes talk to; a completion's way is
`schemas` (what the body may say) → `prepare` (names, tokens, routing) → `admission` → `choice` (text of one choice) →
`reply` (the objects of OpenAI's and Anthropic's APIs). `messages` reads tool calls and reasoning out of a reply's text.
"""
