"""Each promise of docs/architecture.md has a test with its mark, and each mark is a promise."""

import re
from pathlib import Path

TESTS = Path(__file__).parent
MARK = re.compile(r"mark\.promise\(number=(\d+)\)")


def numbered() -> list[int]:
    """The numbers of the promises that are listed."""
    page = (TESTS.parent / "docs" / "architecture.md").read_text()
    section = page.partition("\n## Promises\n")[2].partition("\n## ")[0]
    return [int(number) for number in re.findall(r"^(\d+)\. ", section, re.MULTILINE)]


def marked() -> set[int]:
    """The numbers that tests are marked with."""
    return {int(number) for path in TESTS.rglob("test_*.py") for number in MARK.findall(path.read_text())}


def test_promises_are_numbered_in_their_order() -> None:
    assert numbered() == list(range(1, len(numbered()) + 1))
    assert len(numbered()) > 10


def test_every_promise_has_a_test() -> None:
    assert marked() == set(numbered())
