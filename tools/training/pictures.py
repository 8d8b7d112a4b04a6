"""A picture in the size and the colours in which SD1.5's VAE reads it."""

from __future__ import annotations

import io

from PIL import Image, ImageOps

STARTS_PROGRAMS = ("EPS",)  # formats that Pillow hands to another program
UNIT = 64  # pixels: SD1.5's UNet halves its latents, of 8 pixels each, three times


class UnreadablePicture(ValueError):
    """Pillow cannot read it; the message is Pillow's error."""


def open_picture(data: bytes, resolution: int) -> Image.Image:
    """An RGB picture of about `resolution` squared pixels, in its own proportions but for what `UNIT` cuts away.

    Raises: UnreadablePicture.
    """
    try:
        picture = Image.open(io.BytesIO(data))
        if picture.format in STARTS_PROGRAMS:
            raise UnreadablePicture(f"{picture.format}, which is a program for Ghostscript")
        picture = ImageOps.exif_transpose(picture)
        return ImageOps.fit(on_white(picture), size_for(picture.size, resolution), Image.Resampling.LANCZOS)
    except UnreadablePicture:
        raise
    except Exception as error:  # whatever Pillow raises for a damaged picture
        raise UnreadablePicture(type(error).__name__) from error


def on_white(picture: Image.Image) -> Image.Image:
    """In 8 bits a channel, and without transparency, whose hidden colours may be anything.

    Raises: ValueError if it is of floating-point numbers, whose white is unknown.
    """
    if picture.mode == "F":
        raise ValueError("The picture is of floating-point numbers.")
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        picture = picture.convert("I").point(lambda value: value * (1 / 257) + 0).convert("L")
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def size_for(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """The size in whole units that is nearest in proportion among those of at most resolution² pixels."""
    width, height = size
    scale = resolution / (width * height) ** 0.5
    across = max(1, round(width * scale / UNIT))
    down = max(1, round(height * scale / UNIT))
    while across * down * UNIT**2 > resolution**2 and max(across, down) > 1:
        if across >= down:
            across -= 1
        else:
            down -= 1
    return across * UNIT, down * UNIT
