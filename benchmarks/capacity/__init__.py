"""What replicas and experts cost: a seeded discrete-event simulation of R replicas × E experts under Zipf popularity.

`card` is how long a step and a load take, `placement` which replica gets a request, `replica` one engine, `simulate`
all of them in time, `sweep` the scenarios that the plan is drawn from, `plot` their picture; `fit` takes a card from
real replicas, `trace` the requests that they get, and `validate` sets the simulation beside two of them.
"""
