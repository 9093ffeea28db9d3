"""The tests, one folder a package."""

import os

# Before anything imports triton: it decides then whether its kernels are interpreted, which needs no GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")
