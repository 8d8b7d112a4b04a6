"""Text in a picture, in any script: in Pillow's own font, in a font of the system, or escaped as \\uXXXX."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from functools import cache

from PIL import Image, ImageDraw, ImageFont

# Pillow's own font has only Western letters. Pillow looks for these file names where the system keeps its fonts.
SYSTEM_FONTS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "segoeui.ttf", "Arial Unicode.ttf", "Arial.ttf"),
    *("NotoSansCJK-Regular.ttc", "msyh.ttc", "msgothic.ttc", "malgun.ttf", "PingFang.ttc"),
    *("NotoSansArabic-Regular.ttf", "NotoSansHebrew-Regular.ttf", "NotoSansDevanagari-Regular.ttf"),
    *("NotoSansThai-Regular.ttf", "NotoEmoji-Regular.ttf", "seguiemj.ttf"),
)
NO_LETTER = "\U0010ffff"  # no font has it, so a font draws its sign for missing letters
OVERSAMPLING = 4  # slanted text is drawn so many times larger and scaled down


@cache
def system_font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    """A font of the system by its file name; None if it is not installed."""
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


@cache
def pillow_font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def fonts(size: int) -> Iterator[ImageFont.FreeTypeFont]:
    yield pillow_font(size)
    yield from filter(None, (system_font(name, size) for name in SYSTEM_FONTS))


@cache
def lacks(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether a font cannot draw a letter."""
    return not letter.isprintable() or appearance(font, letter) == appearance(font, NO_LETTER)


def appearance(font: ImageFont.FreeTypeFont, letter: str) -> tuple[tuple[int, int], bytes]:
    """The size and pixels of a drawn letter."""
    drawn = font.getmask(letter)
    return drawn.size, bytes(drawn)


def fitting_font(text: str, size: int) -> tuple[ImageFont.FreeTypeFont, str]:
    """The font that lacks the fewest letters of a text, and the text with the missing letters as \\uXXXX."""
    font = pillow_font(size)
    if any(lacks(font, letter) for letter in text):
        font = min(fonts(size), key=lambda font: sum(lacks(font, letter) for letter in text))
    return font, "".join(escape(letter) if lacks(font, letter) else letter for letter in text)


def escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


def width(text: str, size: int) -> int:
    """In pixels."""
    font, text = fitting_font(text, size)
    return round(font.getlength(text))


def shortened(text: str, size: int, most: int) -> str:
    """The longest beginning of a text that is at most `most` pixels wide, with … if something is cut off."""

    def beginning(end: int) -> str:
        return text[:end].rstrip() + ("…" if end < len(text) else "")

    def is_too_wide(end: int) -> bool:
        return width(beginning(end), size) > most

    # By bisection: a text may have thousands of letters, and each has to be looked for in the fonts.
    end = bisect_left(range(len(text) + 1), True, key=is_too_wide) - 1
    return beginning(max(end, 0))


def write(
    picture: Image.Image, place: tuple[int, int], text: str, size: int, colour: str, anchor: str = "lm"
) -> None:
    """Writes a line. anchor: the point of the text that lies at `place`, as Pillow names it (lm: left middle)."""
    font, text = fitting_font(text, size)
    ImageDraw.Draw(picture).text(place, text, colour, font, anchor)


def write_rising(picture: Image.Image, place: tuple[int, int], text: str, size: int, colour: str) -> None:
    """Writes a line of text that rises by 45° from `place`, where the middle of its left end lies."""
    font, text = fitting_font(text, size * OVERSAMPLING)
    length, height = round(font.getlength(text)), size * OVERSAMPLING * 3 // 2
    mask = Image.new("L", (length, height))
    ImageDraw.Draw(mask).text((0, height // 2), text, 255, font, "lm")
    mask = mask.rotate(45, Image.Resampling.BICUBIC, expand=True).reduce(OVERSAMPLING)
    aside = round(height / OVERSAMPLING / 2 * 0.5**0.5)  # from the mask's corner to where the text begins
    x, y = place[0] - aside, place[1] + aside - mask.height
    picture.paste(colour, (x, y), mask)
