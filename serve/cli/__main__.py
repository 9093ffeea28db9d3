"""`python -m serve.cli` is `overtone`."""

from serve.cli.app import main

main()
