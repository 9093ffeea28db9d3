"""A check of the GPU path for the first ten minutes on a card: right numbers, what kernels take, and whole steps."""
