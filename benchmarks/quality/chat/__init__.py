"""The chat domain: a real model's LoRAs and full fine-tunes. `python -m benchmarks.quality --domain chat`.

`pool` is a set of fine-tunes that are merged, `table` measures every cell once and keeps it, `report` puts the cells
together, and `command` is the command line.
"""
