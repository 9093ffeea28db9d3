"""How long a decoding step takes: the engine's own loop on a model of a real shape, beside memory's speed and peers."""
