"""Draws attention weights as a picture: a grid of rows (queries) against columns (keys), one grid for each panel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw

from .text import shortened, width, write, write_rising

# The colour ramp's fixed points. Their CIE lightness falls evenly: 97, 79, 61, 43, 25.
ANCHORS = ((238, 248, 251), (128, 207, 227), (25, 158, 207), (14, 104, 178), (48, 51, 124))
SHADES = 256
ANCHOR_SHADES = np.linspace(0, SHADES - 1, len(ANCHORS))
RAMP = np.stack(
    [np.interp(np.arange(SHADES), ANCHOR_SHADES, tones) for tones in zip(*ANCHORS, strict=True)], axis=1
).round().astype(np.uint8)  # fmt: skip
PAPER, INK, FAINT = "#ffffff", "#202428", "#6b7280"
MARGIN, GAP, CELL = 20, 6, 20
HEADING_SIZE, TEXT_SIZE, LINE = 18, 13, 20
LEGEND = 200, 14
ASPECT = 1.5  # wanted width by height of a picture with many panels


@dataclass(frozen=True)
class Label:
    """The label of a row or column. is_special: whether it is a start or end token, or a word of the template."""

    text: str
    is_special: bool = False

    @property
    def colour(self) -> str:
        return FAINT if self.is_special else INK


@dataclass(frozen=True)
class AttentionMap:
    """What is to be drawn.

    weights:        [panels, rows, columns], how much of its attention a row gives to a column.
    names:          of the panels, if there are several.
    title, caption: lines above the panels. notes: lines below them.

    The colour scale covers the columns that are not special tokens, if there are any: special tokens often get so
    much attention that all words would look alike beside them. Values outside the scale get the colour of its end.
    """

    weights: np.ndarray
    rows: Sequence[Label]
    columns: Sequence[Label]
    names: Sequence[str]
    title: str
    caption: str
    notes: Sequence[str]

    @cached_property
    def scale(self) -> tuple[float, float]:
        """The lowest and highest weight of the colour scale."""
        ordinary = [index for index, label in enumerate(self.columns) if not label.is_special]
        shown = self.weights[:, :, ordinary] if ordinary else self.weights
        return float(shown.min()), float(shown.max())

    @property
    def shades(self) -> np.ndarray:
        """Each weight's index in the colour ramp: [panels, rows, columns]."""
        low, high = self.scale
        share = (self.weights - low) / max(high - low, 1e-12)
        return (share.clip(0, 1) * (SHADES - 1)).round().astype(int)

    # Layout, in pixels

    @cached_property
    def row_labels_width(self) -> int:
        return max(width(label.text, TEXT_SIZE) for label in self.rows) + GAP

    @cached_property
    def column_labels_height(self) -> int:
        """The height of the slanted labels, with the panel's name above them."""
        name = LINE if any(self.names) else 0
        return name + max(rise(label) for label in self.columns) + GAP

    @cached_property
    def panel(self) -> tuple[int, int]:
        """Width and height of a panel with its labels."""
        labels_end = max(CELL * i + CELL // 2 + rise(label) for i, label in enumerate(self.columns))
        cells_width = max(labels_end, CELL * len(self.columns))
        return self.row_labels_width + cells_width, self.column_labels_height + CELL * len(self.rows)

    @cached_property
    def panels_across(self) -> int:
        """How many panels stand side by side, so that the picture's shape comes nearest to `ASPECT`."""
        (w, h), count = self.panel, len(self.weights)
        return min(
            (n for n in range(1, count + 1) if count % n == 0),
            key=lambda n: abs(np.log(w * n / (h * count / n) / ASPECT)),
        )

    @property
    def top(self) -> int:
        """The upper edge of the panels, below title, caption and legend."""
        return MARGIN + 3 * (LINE + GAP) + MARGIN

    @property
    def size(self) -> tuple[int, int]:
        w, h = self.panel
        down = len(self.weights) // self.panels_across
        lines = max(width(line, TEXT_SIZE) for line in (self.caption, *self.notes))
        wide = max((w + MARGIN) * self.panels_across - MARGIN, lines)
        return wide + 2 * MARGIN, self.top + (h + MARGIN) * down + LINE * len(self.notes) + MARGIN

    def corner(self, panel: int) -> tuple[int, int]:
        """The upper left corner of a panel's cells."""
        w, h = self.panel
        down, right = divmod(panel, self.panels_across)
        x, y = MARGIN + right * (w + MARGIN), self.top + down * (h + MARGIN)
        return x + self.row_labels_width, y + self.column_labels_height

    def middle(self, panel: int, row: int, column: int) -> tuple[int, int]:
        """The centre of a cell."""
        left, top = self.corner(panel)
        return left + CELL * column + CELL // 2, top + CELL * row + CELL // 2

    # Drawing

    def draw(self) -> Image.Image:
        picture = Image.new("RGB", self.size, PAPER)
        room = self.size[0] - 2 * MARGIN
        write(picture, (MARGIN, line_at(0)), shortened(self.title, HEADING_SIZE, room), HEADING_SIZE, INK)
        write(picture, (MARGIN, line_at(1)), self.caption, TEXT_SIZE, FAINT)
        self.draw_legend(picture)
        for panel in range(len(self.weights)):
            self.draw_panel(picture, panel)
        bottom = self.size[1] - MARGIN - LINE * len(self.notes) + LINE // 2
        for line, note in enumerate(self.notes):
            write(picture, (MARGIN, bottom + LINE * line), note, TEXT_SIZE, FAINT)
        return picture

    def draw_legend(self, picture: Image.Image) -> None:
        low, high = (percent(value) for value in self.scale)
        x, y = MARGIN, line_at(2)
        write(picture, (x, y), low, TEXT_SIZE, INK)
        x += width(low, TEXT_SIZE) + GAP
        picture.paste(Image.fromarray(RAMP[None]).resize(LEGEND), (x, y - LEGEND[1] // 2))
        beyond = " and more" if self.weights.max() > self.scale[1] else ""
        write(picture, (x + LEGEND[0] + GAP, y), f"{high}{beyond} of a row's attention", TEXT_SIZE, INK)

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
        for row, label in enumerate(self.rows):
            _, y = self.middle(panel, row, 0)
            write(picture, (left - GAP, y), label.text, TEXT_SIZE, label.colour, "rm")
        for column, label in enumerate(self.columns):
            x, _ = self.middle(panel, 0, column)
            write_rising(picture, (x, top - GAP // 2), label.text, TEXT_SIZE, label.colour)
        if self.names[panel]:
            corner = left - self.row_labels_width, top - self.column_labels_height + LINE // 2
            write(picture, corner, self.names[panel], TEXT_SIZE, INK)


def line_at(number: int) -> int:
    """The height of the middle of a line above the panels."""
    return MARGIN + number * (LINE + GAP) + LINE // 2


def rise(label: Label) -> int:
    """How far a label that is written at 45° extends upwards, and to the right."""
    return round((width(label.text, TEXT_SIZE) + TEXT_SIZE) * 0.5**0.5)


def percent(share: float) -> str:
    """With more digits for smaller shares."""
    digits = 0 if share >= 0.1 else 1 if share >= 0.01 else 2
    return f"{100 * share:.{digits}f} %"
