"""The result of a check."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or may be.

    Attributes:
        severity: `error`: merging is refused.
        subject: `recipe`, `base`, `models.NAME`, `calibration` or `output`.
        message: one line: which file or tensor, what is wrong, what would be right.
    """

    severity: Severity
    subject: str
    message: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.subject}: {self.message}"


def errors(subject: str, messages: Sequence[str]) -> list[Finding]:
    """An error for each message."""
    return [Finding("error", subject, message) for message in messages]


def warnings(subject: str, messages: Sequence[str]) -> list[Finding]:
    """A warning for each message."""
    return [Finding("warning", subject, message) for message in messages]


def unreadable(subject: str, error: OSError) -> list[Finding]:
    """An error for a file or directory that the operating system refuses to read."""
    return errors(subject, [f"{error.filename} cannot be read: {error.strerror}"])


class CheckError(ValueError):
    """A recipe cannot be merged. The message is one line.

    Attributes:
        findings: everything found, warnings included.
    """

    def __init__(self, findings: Sequence[Finding]) -> None:
        wrong = [finding for finding in findings if finding.severity == "error"]
        super().__init__("; ".join(f"{finding.subject}: {finding.message}" for finding in wrong))
        self.findings = tuple(findings)
