"""Everything that produces a number or a plot, and the zoo of embedded models."""
