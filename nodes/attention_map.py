"""The picture of an attention: words against words, a cell for each pair, a panel for each head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw

from .lettering import shortened, width, write, write_rising

# Evenly darker to the eye: CIE lightness 97, 79, 61, 43, 25.
ANCHORS = ((238, 248, 251), (128, 207, 227), (25, 158, 207), (14, 104, 178), (48, 51, 124))
SHADES = 256
STOPS = np.linspace(0, SHADES - 1, len(ANCHORS))
RAMP = np.stack(
    [np.interp(np.arange(SHADES), STOPS, tones) for tones in zip(*ANCHORS, strict=True)], axis=1
).round().astype(np.uint8)  # fmt: skip
PAPER, INK, FAINT = "#ffffff", "#202428", "#6b7280"
MARGIN, GAP, CELL = 20, 6, 20
HEADING, LETTERS, LINE = 18, 13, 20
LEGEND = 200, 14
SHAPE = 1.5  # a picture of many panels is about so much wider than high


@dataclass(frozen=True)
class Word:
    """mark: a start, an end or what a template adds, which is none of the user's."""

    text: str
    mark: bool = False

    @property
    def colour(self) -> str:
        return FAINT if self.mark else INK


@dataclass(frozen=True)
class AttentionMap:
    """weights [panels, rows, columns]: each row's share of a column. names: of the panels, if there are several.
    title, caption: lines above. notes: lines below.

    The scale is that of the columns that are no marks, if there are such: marks often take so much that beside
    them all words look alike. What lies beyond it has the colour of its end.
    """

    weights: np.ndarray
    rows: Sequence[Word]
    columns: Sequence[Word]
    names: Sequence[str]
    title: str
    caption: str
    notes: Sequence[str]

    @cached_property
    def scale(self) -> tuple[float, float]:
        """The least and the most of the words' weights."""
        words = [index for index, word in enumerate(self.columns) if not word.mark]
        shown = self.weights[:, :, words] if words else self.weights
        return float(shown.min()), float(shown.max())

    @property
    def shades(self) -> np.ndarray:
        """Each weight's place in the ramp."""
        low, high = self.scale
        share = (self.weights - low) / max(high - low, 1e-12)
        return (share.clip(0, 1) * (SHADES - 1)).round().astype(int)

    # Where things are, in pixels

    @cached_property
    def beside(self) -> int:
        """The width of the rows' words, with a gap."""
        return max(width(word.text, LETTERS) for word in self.rows) + GAP

    @cached_property
    def above(self) -> int:
        """The height of the panel's name and of the columns' rising words."""
        return LINE * any(self.names) + max(rise(word) for word in self.columns) + GAP

    @cached_property
    def panel(self) -> tuple[int, int]:
        """Width and height of a panel with its words."""
        over = max(CELL * column + CELL // 2 + rise(word) for column, word in enumerate(self.columns))
        return self.beside + max(over, CELL * len(self.columns)), self.above + CELL * len(self.rows)

    @cached_property
    def across(self) -> int:
        """How many panels stand side by side."""
        (w, h), count = self.panel, len(self.weights)
        return min(
            (n for n in range(1, count + 1) if count % n == 0),
            key=lambda n: abs(np.log(w * n / (h * count / n) / SHAPE)),
        )

    @property
    def top(self) -> int:
        """Where the panels begin: below title, caption and legend."""
        return MARGIN + 3 * (LINE + GAP) + MARGIN

    @property
    def size(self) -> tuple[int, int]:
        w, h = self.panel
        down = len(self.weights) // self.across
        lines = max(width(line, LETTERS) for line in (self.caption, *self.notes))
        wide = max((w + MARGIN) * self.across - MARGIN, lines)
        return wide + 2 * MARGIN, self.top + (h + MARGIN) * down + LINE * len(self.notes) + MARGIN

    def corner(self, panel: int) -> tuple[int, int]:
        """The top left of a panel's cells."""
        w, h = self.panel
        down, right = divmod(panel, self.across)
        return MARGIN + right * (w + MARGIN) + self.beside, self.top + down * (h + MARGIN) + self.above

    def middle(self, panel: int, row: int, column: int) -> tuple[int, int]:
        """The middle of a cell."""
        left, top = self.corner(panel)
        return left + CELL * column + CELL // 2, top + CELL * row + CELL // 2

    # The drawing

    def draw(self) -> Image.Image:
        picture = Image.new("RGB", self.size, PAPER)
        room = self.size[0] - 2 * MARGIN
        write(picture, (MARGIN, line_at(0)), shortened(self.title, HEADING, room), HEADING, INK)
        write(picture, (MARGIN, line_at(1)), self.caption, LETTERS, FAINT)
        self.draw_legend(picture)
        for panel in range(len(self.weights)):
            self.draw_panel(picture, panel)
        bottom = self.size[1] - MARGIN - LINE * len(self.notes) + LINE // 2
        for line, note in enumerate(self.notes):
            write(picture, (MARGIN, bottom + LINE * line), note, LETTERS, FAINT)
        return picture

    def draw_legend(self, picture: Image.Image) -> None:
        low, high = (percent(value) for value in self.scale)
        x, y = MARGIN, line_at(2)
        write(picture, (x, y), low, LETTERS, INK)
        x += width(low, LETTERS) + GAP
        picture.paste(Image.fromarray(RAMP[None]).resize(LEGEND), (x, y - LEGEND[1] // 2))
        beyond = " and more" if self.weights.max() > self.scale[1] else ""
        write(picture, (x + LEGEND[0] + GAP, y), f"{high}{beyond} of a row's attention", LETTERS, INK)

    def draw_panel(self, picture: Image.Image, panel: int) -> None:
        left, top = self.corner(panel)
        cells = Image.fromarray(RAMP[self.shades[panel]])
        right, bottom = left + CELL * cells.width, top + CELL * cells.height
        picture.paste(cells.resize((right - left, bottom - top), Image.Resampling.NEAREST), (left, top))
        pen = ImageDraw.Draw(picture)
        for x in range(left, right + 1, CELL):
            pen.line((x, top, x, bottom), PAPER)
        for y in range(top, bottom + 1, CELL):
            pen.line((left, y, right, y), PAPER)
        for row, word in enumerate(self.rows):
            _, y = self.middle(panel, row, 0)
            write(picture, (left - GAP, y), word.text, LETTERS, word.colour, "rm")
        for column, word in enumerate(self.columns):
            x, _ = self.middle(panel, 0, column)
            write_rising(picture, (x, top - GAP // 2), word.text, LETTERS, word.colour)
        if self.names[panel]:
            write(
                picture, (left - self.beside, top - self.above + LINE // 2), self.names[panel], LETTERS, INK
            )


def line_at(number: int) -> int:
    """The middle of a line above the panels."""
    return MARGIN + number * (LINE + GAP) + LINE // 2


def rise(word: Word) -> int:
    """How high, and how far to the right, a word rises at 45°."""
    return round((width(word.text, LETTERS) + LETTERS) * 0.5**0.5)


def percent(share: float) -> str:
    return f"{100 * share:.{0 if share >= 0.1 else 1 if share >= 0.01 else 2}f} %"
