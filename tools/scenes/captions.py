"""Ways of saying what a scene shows.

They differ in where a colour stands: before its noun, after it, after all nouns, before all nouns, in the nouns' order
or in the opposite one. A reader that knows words only by their place in the sentence therefore cannot tell which colour
belongs to which shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from scenes.scene import ABOVE, BELOW, LEFT, RIGHT, Scene, Thing


@dataclass(frozen=True)
class Wording:
    """sentence: the caption, in which `{first}` stands for all things as `first` says each of them, `{second}` for all
    of them as `second` does, and `{reverse}` likewise in the opposite order.

    first, second: may name `{colour}`, `{shape}` and `{size}`, which is a word with a space after it, or nothing.
    """

    sentence: str
    first: str
    second: str = ""

    def say(self, things: Iterable[Thing]) -> str:
        first = [say_thing(self.first, thing) for thing in things]
        second = [say_thing(self.second, thing) for thing in things]
        return self.sentence.format(first=listed(first), second=listed(second), reverse=listed(second[::-1]))


WORDINGS = {
    "plain": Wording("{first}", "a {size}{colour} {shape}"),
    "picture of": Wording("a picture of {first}", "a {size}{colour} {shape}"),
    "there is": Wording("there is {first} on a grey ground", "a {size}{colour} {shape}"),
    "that is": Wording("{first}", "a {size}{shape} that is {colour}"),
    "in colour": Wording("{first}", "a {size}{shape} in {colour}"),
    "which is": Wording("we see {first}", "one {size}{shape}, which is {colour},"),
    "colour of": Wording("{first}", "a {size}{shape} whose colour is {colour}"),
    "painted": Wording("{first}", "painted {colour}, a {size}{shape}"),
    "one is": Wording("{first}", "the {colour} one is a {size}{shape}"),
    "nouns, then colours": Wording("{first}; {second}", "a {size}{shape}", "the {shape} is {colour}"),
    "nouns, then colours reversed": Wording(
        "{first}; {reverse}", "a {size}{shape}", "the {shape} is {colour}"
    ),
    "draw and paint": Wording("draw {first}, then make {reverse}", "a {size}{shape}", "the {shape} {colour}"),
    "colours, then nouns": Wording("use {first}: {second}", "{colour}", "{colour} for the {size}{shape}"),
    "colours, then nouns reversed": Wording(
        "{first}: {reverse}", "{colour}", "a {size}{shape} has to be {colour}"
    ),
    "colour is that of": Wording("{first}", "{colour} is the colour of the {size}{shape}"),
    "respectively": Wording(
        "{first}, whose colours are {second} in this order", "a {size}{shape}", "{colour}"
    ),
}

# The same place seen from either thing.
BESIDE = {
    LEFT: ("{of} is to the left of {to}", "{to} is to the right of {of}"),
    RIGHT: ("{of} is to the right of {to}", "{to} is to the left of {of}"),
    ABOVE: ("{of} is above {to}", "{to} is below {of}"),
    BELOW: ("{of} is below {to}", "{to} is above {of}"),
}
ALONE = {LEFT: "at the left", RIGHT: "at the right", ABOVE: "at the top", BELOW: "at the bottom"}


def caption(scene: Scene, wording: Wording, random: Random) -> str:
    """Says a scene. The order of the things, and from which of two things a place is seen, are drawn."""
    text = wording.say(random.sample(scene.things, len(scene.things)))
    if scene.place is None:
        return text
    of = f"the {scene.things[scene.place.of].shape}"
    if scene.place.to is None:
        return f"{text}; {of} is {ALONE[scene.place.side]}"
    to = f"the {scene.things[scene.place.to].shape}"
    return f"{text}; {random.choice(BESIDE[scene.place.side]).format(of=of, to=to)}"


def say_thing(pattern: str, thing: Thing) -> str:
    size = f"{thing.size} " if thing.size else ""
    return pattern.format(colour=thing.colour, size=size, shape=thing.shape)


def listed(parts: list[str]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    *most, last = parts
    last = last.removesuffix(",")
    return f"{', '.join(most)} and {last}".replace(",,", ",") if most else last
