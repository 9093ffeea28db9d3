"""From a checked body to its reply.

`answer` runs one request: `prompts` and `prepare` make engine requests of it (`catalogue` says what a `model` names),
`generation` runs them, and `reply` sends what comes. `service` is what all routes talk to.
"""
