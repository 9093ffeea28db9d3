"""Labelled prompts of the real zoo, one JSON object a line: `python -m benchmarks.zoo.real.prompts`."""

import sys
from collections.abc import Sequence
from typing import get_args

from benchmarks.zoo.command import Parser, positive
from serve.demo.zoo.real.tasks import prompt_lines
from serve.demo.zoo.task import Phrasings, Split


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = Parser(prog="python -m benchmarks.zoo.real.prompts", description="Print labelled prompts of the real zoo.")
    parser.add_argument(
        "--split", choices=get_args(Split), default="train", help="split of the contents (default train)"
    )
    parser.add_argument(
        "--phrasings", choices=get_args(Phrasings), default="train", help="split of the wordings (default train)"
    )
    parser.add_argument("--per-task", type=positive, default=64, help="prompts a task (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice (default 0)")
    options = parser.parse_args(arguments)
    for line in prompt_lines(options.split, options.per_task, options.seed, options.phrasings):
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
