"""Scenes to train and measure on: captions say them, the detector finds them in their pictures, seeds repeat them."""

from dataclasses import replace
from itertools import permutations
from random import Random

import pytest
import torch

from demo_model.data import SETS
from scenes.captions import WORDINGS, caption
from scenes.detector import find_things
from scenes.held_out import (
    HELD_OUT_PAIRS,
    HELD_OUT_WORDINGS,
    KINDS,
    PAIRS,
    TRAINING_WORDINGS,
    has_new_pair,
    is_for_training,
)
from scenes.language import OutsideTheWorld, check_prompt
from scenes.painting import SIZES, Placed, mask, paint, place_things
from scenes.scene import COLOURS, SHAPES, SIDES, Place, Scene, Thing, draw_scene
from scenes.verdict import judge

COUNT = 400


def painted(random, cells, count=COUNT):
    """Scenes, the things in their pictures, and the pictures."""
    drawn = [draw_scene(random) for _ in range(count)]
    things = [place_things(scene, random, cells) for scene in drawn]
    return drawn, things, torch.stack([paint(placed, cells) for placed in things])


@pytest.mark.parametrize("cells", SIZES)
def test_the_detector_finds_exactly_what_was_painted(cells):
    drawn, things, pictures = painted(Random(0), cells)
    found = find_things(pictures)
    assert [set(one) for one in found] == [set(placed) for placed in things]
    for scene, one in zip(drawn, found, strict=True):
        verdict = judge(one, scene, cells)
        assert verdict.bound and verdict.colours and verdict.shapes
        assert verdict.sized is (True if any(thing.size for thing in scene.things) else None)
        assert verdict.placed is (True if scene.place else None)


@pytest.mark.parametrize("cells", SIZES)
def test_the_detector_is_right_in_most_noisy_and_faded_pictures(cells):
    _, things, pictures = painted(Random(1), cells)
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    found = find_things(0.8 * pictures + 0.3 * noise)
    right = sum(set(one) == set(placed) for one, placed in zip(found, things, strict=True))
    assert right >= 0.95 * COUNT


def test_nothing_is_found_in_an_empty_or_noisy_ground():
    noise = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert find_things(torch.cat([torch.zeros(1, 3, 8, 8), 0.3 * noise])) == [[] for _ in range(21)]


def test_a_thing_too_many_is_found_and_judged_wrong():
    scene = Scene((Thing("red", "square"), Thing("blue", "ring")))
    here = Placed(Thing("red", "square", "small"), 0, 0, 3), Placed(Thing("blue", "ring", "small"), 0, 5, 3)
    more = Placed(Thing("red", "square", "small"), 5, 0, 3), Placed(Thing("white", "cross", "small"), 5, 5, 3)
    (found,) = find_things(paint(here + more)[None])
    assert set(found) == set(here + more)
    verdict = judge(found, scene, 8)
    assert not (verdict.colours or verdict.shapes or verdict.bound)
    assert judge(here, scene, 8).bound


def test_swapped_colours_are_right_colours_and_shapes_but_not_bound():
    scene = Scene((Thing("red", "square", "small"), Thing("blue", "ring")), Place(0, "left", 1))
    swapped = (
        Placed(Thing("blue", "square", "small"), 0, 0, 3),
        Placed(Thing("red", "ring", "small"), 0, 5, 3),
    )
    verdict = judge(swapped, scene, 8)
    assert verdict.colours and verdict.shapes
    assert (verdict.bound, verdict.sized, verdict.placed) == (False, False, False)


@pytest.mark.parametrize("to", [1, None])
@pytest.mark.parametrize("side", SIDES)
def test_a_place_is_judged_by_where_the_things_are(side, to):
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
    scene = Scene((Thing("red", "square"), Thing("blue", "ring")), Place(0, side, to))
    other = replace(scene, place=Place(0, opposite[side], to))
    placed = place_things(scene, Random(0))
    assert judge(placed, scene, 8).placed is True and judge(placed, other, 8).placed is False


def test_a_size_is_judged_where_it_is_said():
    placed = (Placed(Thing("red", "square", "small"), 0, 0, 3),)
    said = [
        judge(placed, Scene((Thing("red", "square", size),)), 8).sized for size in ("small", "large", None)
    ]
    assert said == [True, False, None]


@pytest.mark.parametrize("cells", SIZES)
def test_no_two_shapes_look_alike(cells):
    for side in SIZES[cells].values():
        for one, other in permutations(SHAPES, 2):
            assert not torch.equal(mask(one, side), mask(other, side))


@pytest.mark.parametrize("name", WORDINGS)
def test_a_wording_says_every_thing_with_its_own_colour_and_size(name):
    """All scenes of the same words but other bindings are said differently."""
    things = [Thing("red", "square", "small"), Thing("blue", "ring", "large"), Thing("white", "cross")]
    captions = set()
    for colours in permutations([thing.colour for thing in things]):
        said = [replace(thing, colour=colour) for thing, colour in zip(things, colours, strict=True)]
        text = WORDINGS[name].say(said)
        assert all(thing.colour in text and thing.shape in text for thing in said)
        assert text.count("small ") == text.count("large ") == 1
        captions.add(text)
    assert len(captions) == 6


def test_colour_and_noun_come_in_either_order_and_far_apart():
    things = Thing("red", "square"), Thing("blue", "ring")
    distances = {}
    for name, wording in WORDINGS.items():
        words = wording.say(things).replace(",", "").replace(";", "").split()
        distances[name] = words.index("square") - words.index("red")
    assert len(WORDINGS) >= 12
    assert min(distances.values()) < -4 and max(distances.values()) > 4
    reversed_order = WORDINGS["nouns, then colours reversed"].say(things)
    assert reversed_order == "a square and a ring; the ring is blue and the square is red"
    nouns = {
        caption(Scene(things), WORDINGS["plain"], Random(seed)).index("square") < 15 for seed in range(9)
    }
    assert nouns == {True, False}


def test_held_out_pairs_never_meet_in_training_though_each_thing_is_seen():
    drawn = [draw_scene(Random(seed), allowed=is_for_training) for seed in range(3 * COUNT)]
    assert not any(scene.pairs & HELD_OUT_PAIRS for scene in drawn)
    assert {thing.kind for scene in drawn for thing in scene.things} == set(KINDS)
    assert 25 <= len(HELD_OUT_PAIRS) < len(PAIRS) / 5
    tested = [draw_scene(Random(seed), counts=(2,), allowed=has_new_pair) for seed in range(COUNT)]
    assert {pair for scene in tested for pair in scene.pairs} == HELD_OUT_PAIRS
    assert len(HELD_OUT_WORDINGS) == 3 and set(TRAINING_WORDINGS).isdisjoint(HELD_OUT_WORDINGS)


def test_a_seed_repeats_scenes_captions_and_pictures():
    def make(seed):
        random = Random(seed)
        drawn, things, pictures = painted(random, 8, 20)
        return [caption(scene, WORDINGS["that is"], random) for scene in drawn], things, pictures

    first, again, other = make(5), make(5), make(6)
    assert first[:2] == again[:2] and torch.equal(first[2], again[2])
    assert first[0] != other[0] and not torch.equal(first[2], other[2])


def test_scenes_say_every_colour_shape_size_and_place():
    drawn = [draw_scene(Random(seed)) for seed in range(COUNT)]
    things = [thing for scene in drawn for thing in scene.things]
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {thing.size for thing in things} == {"small", "large", None}
    assert {(scene.place.side, scene.place.to is None) for scene in drawn if scene.place} == {
        (side, alone) for side in SIDES for alone in (True, False)
    }
    assert {len(scene.things) for scene in drawn} == {1, 2, 3}


@pytest.mark.parametrize("name", SETS)
def test_every_caption_is_a_prompt_that_the_demo_takes(name):
    for one in SETS[name]()[:300]:
        check_prompt(one.text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a red cat and a blue square", "does not know cat"),
        ("a red and a blue one", "names 0 shapes"),
        ("a red square, a blue ring, a green cross and a white triangle", "names 4 shapes"),
        ("a red square and a ring", "fewer colours than shapes"),
        ("", "names 0 shapes"),
        ("(a red ring:1.2)", "does not know \\(, 1, 2, \\)"),
        ("a red ring \udcff", "does not know .udcff"),
        ("a red ring " * 100, "1100 characters"),
    ],
)
def test_a_prompt_outside_the_world_is_refused_with_what_can_be_drawn(text, said):
    with pytest.raises(OutsideTheWorld, match=f"{said}.*square, ring, cross, triangle.*red, green"):
        check_prompt(text)
