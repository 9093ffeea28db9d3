"""The same API over several engine replicas, on Ray Serve (the extra `ray`).

The ingress is the FastAPI application of `serve.api` with the tokenizer and the router; behind it are replicas with an
engine each. `messages` is what goes between them, `replica` the engine's end, `client` and `outputs` the ingress' end,
`registry` the experts that requests may name, `replicas` asks the replicas of themselves and `board` remembers it.
`metrics` joins their expositions, `ingress` and `app` put it together, `run` is a deployment on one machine,
`proxy` the middleware of its HTTP proxy. Nothing else imports this package, or Ray.
"""
