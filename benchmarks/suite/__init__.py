"""A short form of every benchmark, kept as figures by name, so that two states of the project can be compared."""
