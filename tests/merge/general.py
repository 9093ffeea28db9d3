"""General questions for a tiny model, which need not answer them correctly."""

from pathlib import Path

import pytest

from merge.check.general import Question

TEMPLATE = "{% for m in messages %}{{ m.role }}. {{ m.content }} {% endfor %}"
QUESTIONS = (Question("what is the capital of france", "Paris"), Question("what do bees make", "honey"))


def ask_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few questions and one text, and no need for a base to answer any."""
    for module in ("general", "elsewhere"):
        monkeypatch.setattr(f"merge.check.{module}.LEAST_KNOWN", 0)
        monkeypatch.setattr(f"merge.check.{module}.general_questions", lambda: QUESTIONS)
    monkeypatch.setattr("merge.check.general.general_texts", lambda: ("rain falls on the hills.",))


def add_template(model: Path) -> Path:
    """Give a tiny model a chat template."""
    (model / "chat_template.jinja").write_text(TEMPLATE)
    return model
