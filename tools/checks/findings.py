"""The findings of tools/doctor.py: texts, with advice where something must be done. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

INDENT = 9  # columns for the words TO DO in front of a text


@dataclass(frozen=True)
class Finding:
    """A line of the report.

    text:   what was found.
    advice: what to do about it; None if there is nothing to do.
    """

    text: str
    advice: str | None = None

    def __str__(self) -> str:
        if self.advice is None:
            return " " * INDENT + self.text
        return f"{'TO DO':<{INDENT}}{self.text}\n{' ' * INDENT}{self.advice}".rstrip()


Check = Callable[..., Iterable[Finding]]
Section = tuple[str, list[Finding]]  # title and findings


def run_check(check: Check, *arguments: object) -> list[Finding]:
    """The findings of a check that is called with these arguments. If the check fails, the last finding says so."""
    findings = []
    try:
        findings.extend(check(*arguments))
    except Exception as error:  # a damaged installation can raise any of them
        findings.append(failed_check(error))
    return findings


def failed_check(error: Exception) -> Finding:
    """The finding for an error that ended a check. It has the first line of the error's message."""
    lines = str(error).strip().splitlines() or ["without a message"]
    return Finding(
        f"This check failed ({type(error).__name__}: {lines[0]}).",
        "First do what the other lines advise, then run this again with the Python that runs ComfyUI.",
    )


def format_report(sections: Iterable[Section]) -> tuple[str, int]:
    """The report, without empty sections, and how many findings need something done."""
    sections = [(title, findings) for title, findings in sections if findings]
    lines = [line for title, findings in sections for line in (title, *map(str, findings), "")]
    number = sum(finding.advice is not None for _, findings in sections for finding in findings)
    return "\n".join([*lines, verdict(number)]), number


def verdict(number: int) -> str:
    """The last line of a report with so many things to do."""
    if number == 0:
        return "Ready."
    return "1 thing to do." if number == 1 else f"{number} things to do."
