"""Numbers in sentences, and tables of text."""

from collections.abc import Collection, Sequence


def counted(number: int, noun: str) -> str:
    """The number with its noun: "1 error", "0 errors", "1,000 errors". The noun is one that takes an s."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def size(count: float) -> str:
    """A number of bytes with three digits: "70.9 kB", "16.1 GB"."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def reason(error: Exception) -> str:
    """Why a file cannot be read, without the path, which the message has already."""
    return str((isinstance(error, OSError) and error.strerror) or error)


def aligned(rows: Sequence[Sequence[str]], left: Collection[int]) -> list[str]:
    """Lines of a table, with two blanks between columns.

    Args:
        rows: cells, the same number in each row.
        left: the columns that are aligned on the left; all others are aligned on the right.
    """
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
