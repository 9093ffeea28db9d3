"""Numbers in sentences."""


def counted(number: int, noun: str) -> str:
    """The number with its noun: "1 error", "0 errors", "1,000 errors". The noun is one that takes an s."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
