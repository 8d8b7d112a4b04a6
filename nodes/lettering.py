"""Words in a picture: with Pillow's own font, with one of the system's for other scripts, or escaped."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from functools import cache

from PIL import Image, ImageDraw, ImageFont

# Pillow's own font has Western letters alone. By file name, in the folders where systems keep their fonts.
SYSTEM_FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "segoeui.ttf", "Arial Unicode.ttf", "Arial.ttf"),
    *("NotoSansCJK-Regular.ttc", "msyh.ttc", "msgothic.ttc", "malgun.ttf", "PingFang.ttc"),
    *("NotoSansArabic-Regular.ttf", "NotoSansHebrew-Regular.ttf", "NotoSansDevanagari-Regular.ttf"),
    *("NotoSansThai-Regular.ttf", "NotoEmoji-Regular.ttf", "seguiemj.ttf"),
)
NO_LETTER = "\U0010ffff"  # no font has it; what is drawn instead is drawn for all that a font lacks
FINER = 4  # how much larger slanted words are drawn, to be scaled down


@cache
def system_font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


@cache
def own_font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def fonts(size: int) -> Iterator[ImageFont.FreeTypeFont]:
    yield own_font(size)
    yield from filter(None, (system_font(name, size) for name in SYSTEM_FONTS))


@cache
def lacks(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    return not letter.isprintable() or appearance(font, letter) == appearance(font, NO_LETTER)


def appearance(font: ImageFont.FreeTypeFont, letter: str) -> tuple:
    drawn = font.getmask(letter)
    return drawn.size, bytes(drawn)


def fitting(text: str, size: int) -> tuple[ImageFont.FreeTypeFont, str]:
    """The font that lacks the fewest of a text's letters, and the text with these as \\uXXXX."""
    font = own_font(size)
    if any(lacks(font, letter) for letter in text):
        font = min(fonts(size), key=lambda font: sum(lacks(font, letter) for letter in text))
    return font, "".join(escape(letter) if lacks(font, letter) else letter for letter in text)


def escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def width(text: str, size: int) -> int:
    font, text = fitting(text, size)
    return round(font.getlength(text))


def shortened(text: str, size: int, most: int) -> str:
    """A text's beginning that is at most so many pixels wide."""

    def beginning(end: int) -> str:
        return text[:end].rstrip() + "…" * (end < len(text))

    def is_too_wide(end: int) -> bool:
        return width(beginning(end), size) > most

    # Halved, since it may be thousands of letters, each of which has to be looked for in fonts.
    end = bisect_left(range(len(text) + 1), True, key=is_too_wide) - 1
    return beginning(max(end, 0))


def write(
    picture: Image.Image, place: tuple[int, int], text: str, size: int, colour: str, anchor: str = "lm"
):
    """anchor: which part of the text lies at the place, as Pillow names it; lm is the left end's middle."""
    font, text = fitting(text, size)
    ImageDraw.Draw(picture).text(place, text, colour, font, anchor)


def write_rising(picture: Image.Image, place: tuple[int, int], text: str, size: int, colour: str):
    """A text that rises by 45° from the place of its left end's middle."""
    font, text = fitting(text, size * FINER)
    length, height = round(font.getlength(text)), size * FINER * 3 // 2
    stencil = Image.new("L", (length, height))
    ImageDraw.Draw(stencil).text((0, height // 2), text, 255, font, "lm")
    stencil = stencil.rotate(45, Image.Resampling.BICUBIC, expand=True).reduce(FINER)
    aside = round(height / FINER / 2 * 0.5**0.5)  # from the stencil's corner to where the text begins
    x, y = place[0] - aside, place[1] + aside - stencil.height
    picture.paste(colour, (x, y), stencil)
