"""Small Python functions without their last line: a code task whose data is here, and whose answers are not executed.

lm-eval's `humaneval` and `mbpp` take their data from the Hugging Face Hub and run what a model wrote.
"""

PROBLEMS = (
    ("def add(a, b):", "Return the sum of a and b.", "a + b"),
    ("def subtract(a, b):", "Return a minus b.", "a - b"),
    ("def multiply(a, b):", "Return the product of a and b.", "a * b"),
    ("def divide(a, b):", "Return a divided by b.", "a / b"),
    ("def square(x):", "Return the square of x.", "x * x"),
    ("def double(x):", "Return twice x.", "x * 2"),
    ("def negate(x):", "Return x with its sign changed.", "-x"),
    ("def is_even(n):", "Return whether n is even.", "n % 2 == 0"),
    ("def is_odd(n):", "Return whether n is odd.", "n % 2 == 1"),
    ("def is_positive(x):", "Return whether x is greater than zero.", "x > 0"),
    ("def length(text):", "Return the number of characters in text.", "len(text)"),
    ("def upper(text):", "Return text in upper case.", "text.upper()"),
    ("def lower(text):", "Return text in lower case.", "text.lower()"),
    ("def first(items):", "Return the first of the items.", "items[0]"),
    ("def last(items):", "Return the last of the items.", "items[-1]"),
    ("def reverse(text):", "Return text backwards.", "text[::-1]"),
    ("def largest(numbers):", "Return the largest of the numbers.", "max(numbers)"),
    ("def smallest(numbers):", "Return the smallest of the numbers.", "min(numbers)"),
    ("def total(numbers):", "Return the sum of the numbers.", "sum(numbers)"),
    ("def words(text):", "Split text into words.", "text.split()"),
)
"""Head, docstring, and what the function returns."""


def code_documents(count: int) -> list[dict[str, str]]:
    """Up to `count` of the problems as prompts that end in `return`, with their answers."""
    return [
        {"prompt": f'{head}\n    """{told}"""\n    return', "answer": answer} for head, told, answer in PROBLEMS[:count]
    ]
