"""Which tokens are which words, in CLIP's half and in the LLM's."""

import pytest
import torch

from llm4gen.models.errors import WrongTraining


@pytest.fixture(scope="module")
def fused(started, clip, llm, adapter):
    from llm4gen.nodes.fused_clip import FusedCLIP  # noqa: PLC0415
    from llm4gen.nodes.fusion import Fusion  # noqa: PLC0415

    return FusedCLIP.around(clip, Fusion(llm, adapter))


@pytest.fixture(scope="module")
def words(started):
    from llm4gen.nodes.training import words  # noqa: PLC0415

    return words


def text_at(fused, caption, places):
    """What stands at places of the context, as the two tokenizers decode it."""
    tokens = fused.tokenize(caption, disable_weights=True)
    clip, decode = fused.text_of(tokens)
    ids = [token for token, *_ in tokens[fused_tokens()][0]]
    tokenizer = fused.fusion.llm.llm.tokenizer
    in_clip = decode([clip[place][0] for place in places if place < 77])
    return in_clip.strip(), tokenizer.decode([ids[place - 77] for place in places if place >= 77]).strip()


def fused_tokens():
    from llm4gen.nodes.fused_clip import LLM_TOKENS  # noqa: PLC0415

    return LLM_TOKENS


@pytest.mark.parametrize(
    ("caption", "pairs"),
    [
        ("a red ball next to a blue cube", [("red", "ball"), ("blue", "cube")]),
        ("the ball is crimson, and behind it stands a turquoise armadillo", [("turquoise", "armadillo")]),
        ("A Red ball (left) and a [blue] cube, 50% \\ odd", [("red", "ball"), ("blue", "cube")]),
        ("a big red ball", [("big", "ball"), ("red", "ball")]),
        ("a light blue sky", [("light blue", "sky")]),
    ],
)
def test_both_tokenizers_words_are_found(fused, words, caption, pairs):
    with torch.inference_mode():
        found = words.places_of(fused, caption, pairs)
        assert len(found) == len(pairs)
        for pair, places in zip(pairs, found, strict=True):
            for word, at in zip(pair, places, strict=True):
                clip, llm = text_at(fused, caption, at)
                assert clip.lower() == word
                assert llm.lower() == word


def test_of_equal_words_those_that_are_nearest_belong_together(fused, words):
    caption = "a red ball, and a blue ball"
    red, blue = words.nearest(caption, "red", "ball"), words.nearest(caption, "blue", "ball")
    assert [caption.index("ball"), caption.rindex("ball")] == [red[1][0], blue[1][0]]


@pytest.mark.parametrize(
    "pairs",
    [
        [("green", "ball")],
        [("red", "cube")],
        [("re", "ball")],
        [("red", "red")],
        [("red", "ball"), ("red ball", "mat")],
    ],
)
def test_words_that_cannot_be_told_are_left_out(fused, words, pairs):
    """A word that does not stand there, a part of a word, a word with itself, one word inside of another."""
    with torch.inference_mode():
        assert words.places_of(fused, "a red ball on a mat", pairs) == ()


def test_pairs_are_written_as_attribute_and_entity(words):
    assert words.words_of(" red: ball ;light blue :  cube\nold: man;") == [
        ("red", "ball"),
        ("light blue", "cube"),
        ("old", "man"),
    ]
    assert words.words_of("") == []
    for text in ("red ball", "red:", ": ball"):
        with pytest.raises(WrongTraining, match="is no pair of an attribute and its entity"):
            words.words_of(text)
