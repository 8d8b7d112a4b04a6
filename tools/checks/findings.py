"""What tools/doctor.py finds: in words, with a cure where there is something to do. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

WIDTH = 9  # of the mark before a line


@dataclass(frozen=True)
class Finding:
    """cure: what to do about it. None: nothing, it is as it should be or does not matter."""

    text: str
    cure: str | None = None

    def __str__(self) -> str:
        if self.cure is None:
            return " " * WIDTH + self.text
        return f"{'TO DO':<{WIDTH}}{self.text}\n{' ' * WIDTH}{self.cure}".rstrip()


Check = Callable[[], Iterable[Finding]]


def found_by(check: Check) -> list[Finding]:
    """A check's findings; that it fails is one more."""
    findings = []
    try:
        findings.extend(check())
    except Exception as error:  # whatever a damaged installation makes of it
        findings.append(failed(error))
    return findings


def failed(error: Exception) -> Finding:
    said = str(error).strip().splitlines()[0] if str(error).strip() else "no more is known"
    return Finding(
        f"This could not be looked at ({type(error).__name__}: {said}).",
        "Do what else is to do here, then run this again with the Python that runs ComfyUI.",
    )


def page(sections: Iterable[tuple[str, list[Finding]]]) -> tuple[str, int]:
    """The text, and how much is to do."""
    sections = [(title, findings) for title, findings in sections if findings]
    lines = [line for title, findings in sections for line in (title, *map(str, findings), "")]
    number = sum(finding.cure is not None for _, findings in sections for finding in findings)
    verdict = "Ready." if number == 0 else f"{number} thing{'s' * (number > 1)} to do."
    return "\n".join([*lines, verdict]), number
