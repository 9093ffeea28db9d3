"""`python -m serve.cli` is `overtone`."""

from serve.cli import main

main()
