"""What merging costs: peak memory and time of every method over the number of models, and beside mergekit.

`python -m benchmarks.merge --json`. `pool` makes the models, `child` runs one merge in a separate process, `compare`
runs mergekit on the same models. With `--shape llama-3.1-8b` random LoRAs of a model of that shape (`shape`) are merged
into a bundle, backbone and experts (`whole`).
"""
