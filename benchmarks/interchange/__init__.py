"""Whether a bundle of low-rank experts means the same to stock vLLM: exported as LoRAs, served on the same backbone.

`bundle` writes the zoo's fine-tunes as low-rank experts of the zoo's base and exports them, `compare` lets both engines
continue the same prompts greedily in float32 and holds the tokens against each other.
"""
