"""The progress protocol: long work calls `progress(total)` once and the returned function after each step."""

from collections.abc import Callable

Step = Callable[[], None]
Progress = Callable[[int], Step]


def silent(total: int) -> Step:
    """Reports progress to nobody."""
    return lambda: None
