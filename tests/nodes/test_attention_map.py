"""LLM4GEN Attention Map: what is drawn is what was computed, under words that tell which is which."""

from copy import copy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

import in_process
from paths import COMFYUI

LONG = "a blue sheep next to a brown vase, behind them a red bookcase, " * 8  # 128 CLIP tokens
PROMPTS = [
    "a blue sheep, a brown vase",
    "a (blue:1.6) sheep, a (brown:0.4) vase",
    "青い羊 🐑 кот café",
    LONG,
    "",
]
INVERSION = "drawninversion"


@pytest.fixture(scope="module")
def draw(started, clip, llm, adapter):
    """The node's picture."""

    def draw(text, **settings):
        inputs = {"clip": clip, "llm": llm, "adapter": adapter, "text": text} | settings
        with torch.inference_mode():
            return in_process.run(started.ours["LLM4GEN_Attention"], **inputs)

    return draw


@pytest.fixture(scope="module")
def layout(fused):
    """Words and places of the node's picture."""
    from llm4gen.nodes.attention import attention_map  # noqa: PLC0415

    @cache
    def layout(text, heads="average"):
        with torch.inference_mode():
            return attention_map(fused, text, heads)

    return layout


@pytest.fixture(scope="module")
def weights(clip, adapter, encode, fused):
    """The numbers, from core's CLIP states and the module alone: [heads, LLM's tokens, 77]."""

    def weights(text):
        states, tokens = encode(clip, text)[0][0][:, :77], fused.tokenize(text)["llm4gen"][0]
        with torch.inference_mode():
            return adapter.adapter.attention_weights(
                states, fused.features(tokens).states[None, : len(tokens)]
            )[0]

    return weights


def colours_at(picture, layout, panels, rows, columns):
    """The colours at the cells' middles: [panels, rows, columns, 3], 0 to 255."""
    places = [layout.middle(p, r, c) for p in range(panels) for r in range(rows) for c in range(columns)]
    x, y = np.array(places).T
    return (picture[0].numpy()[y, x] * 255).round().reshape(panels, rows, columns, 3)


def place_of(picture, text, colour, size=13):
    """Where a text stands in a picture, as [left, middle]; None if it does not."""
    from llm4gen.nodes.drawing.attention_map import PAPER  # noqa: PLC0415
    from llm4gen.nodes.drawing.text import width, write  # noqa: PLC0415

    stencil = Image.new("RGB", (width(text, size), 16), PAPER)
    write(stencil, (0, 8), text, size, colour)
    stencil, whole = np.asarray(stencil), np.asarray(picture)
    high, wide, _ = stencil.shape
    for top in range(len(whole) - high):
        at = -1
        while (at := whole[top + 8].tobytes().find(stencil[8].tobytes(), at + 1)) >= 0:
            part = whole[top : top + high, at // 3 : at // 3 + wide]
            if at % 3 == 0 and np.array_equal(part, stencil):
                return at // 3, top + 8
    return None


@pytest.mark.parametrize("heads", ["average", "each"])
@pytest.mark.parametrize("text", PROMPTS, ids=["words", "emphasis", "scripts", "long", "empty"])
def test_each_cells_colour_is_its_weights_place_on_the_scale(text, heads, draw, layout, weights, clip):
    from llm4gen.nodes.drawing.attention_map import RAMP  # noqa: PLC0415

    picture, numbers = draw(text, heads=heads), weights(text)
    assert picture.ndim == 4 and (picture.shape[0], picture.shape[3]) == (1, 3)
    assert picture.dtype == torch.float32 and picture.min() >= 0 and picture.max() <= 1
    used = 2 + sum(word > 0 for _, _, word in clip.tokenize(text, return_word_ids=True)["l"][0])
    numbers = (numbers if heads == "each" else numbers.mean(0, keepdim=True))[:, :64, :used].numpy()
    words = numbers[:, :, 1:-1] if used > 2 else numbers
    place = ((numbers - words.min()) / (words.max() - words.min())).clip(0, 1) * 255
    colours = colours_at(picture, layout(text, heads), *numbers.shape)
    below, above = ((colours == RAMP[rounded(place).astype(int)]).all(-1) for rounded in (np.floor, np.ceil))
    assert (below | above).all()
    assert words.max() > 1.5 * words.min()


def test_the_ramp_darkens_evenly():
    from llm4gen.nodes.drawing.attention_map import RAMP  # noqa: PLC0415

    part = RAMP / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    lightness = 116 * np.cbrt(linear @ (0.2126, 0.7152, 0.0722)) - 16
    assert np.abs(lightness - np.linspace(97, 25, len(RAMP))).max() <= 1.5


def test_rows_are_what_the_llm_reads_and_columns_what_clip_reads(layout):
    drawn = layout("a (blue:1.3) sheep, \\(old\\)")
    assert [word.text for word in drawn.rows if word.is_special] == ["pre", "</s>"]
    read = "".join(word.text.replace("(space)", "") for word in drawn.rows[1:-1])
    assert read == "ablue" + "sheep" + ",(old)"
    assert [word.text for word in drawn.columns] == [
        "<start>",
        "a",
        "blue",
        "sheep",
        ",",
        "(",
        "old",
        ")",
        "<end>",
    ]
    assert [word.is_special for word in drawn.columns] == [True, *[False] * 7, True]


def test_a_token_at_the_templates_border_is_the_users_if_one_letter_of_it_is(fused, adapter):
    from llm4gen.nodes.attention import attention_map  # noqa: PLC0415
    from llm4gen.nodes.fused_clip import Fusion  # noqa: PLC0415

    close = copy(adapter)
    close.recipe = replace(adapter.recipe, template="a re{text}s, please")
    with torch.inference_mode():
        drawn = attention_map(
            fused.around(fused.plain(), Fusion(fused.fusion.llm, close)), "d cat", "average"
        )
    rows = [(word.text, word.is_special) for word in drawn.rows if word.text != "(space)"]
    theirs = [("a", True), (",", True), ("please", True), ("</s>", True)]
    assert rows == [theirs[0], ("red", False), ("cats", False), *theirs[1:]]


def test_a_users_space_does_not_make_the_templates_word_theirs(started):
    """Of a tokenizer that spells spaces in the tokens themselves."""
    from llm4gen.models.recipe import Recipe  # noqa: PLC0415
    from llm4gen.nodes.drawing.token_labels import users_tokens  # noqa: PLC0415

    place = COMFYUI / "comfy" / "text_encoders" / "qwen25_tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(place)
    template, text = "user:{text}assistant", " a cat "
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(template.format(text=text))["input_ids"])
    assert pieces == ["user", ":", "Ġa", "Ġcat", "Ġassistant"]
    assert users_tokens(tokenizer, Recipe(template=template), text) == [False, False, True, True, False]


def test_no_letter_is_put_together_of_more_tokens_than_utf_8_has_bytes_for_one():
    from llm4gen.nodes.drawing.token_labels import INCOMPLETE_LETTER, token_texts  # noqa: PLC0415

    numbered = [f"{INCOMPLETE_LETTER} {number}/4" for number in (1, 2, 3, 4)]
    assert token_texts(range(5), lambda part: INCOMPLETE_LETTER) == [*numbered, INCOMPLETE_LETTER]


def test_letters_of_several_tokens_are_numbered(layout):
    drawn = [word.text for word in layout("青い羊 🐑").columns]
    assert drawn == [
        "<start>",
        "青 1/3",
        "青 2/3",
        "青 3/3",
        "い",
        "羊 1/3",
        "羊 2/3",
        "羊 3/3",
        "🐑",
        "<end>",
    ]


def test_a_textual_inversion_has_a_column_for_each_vector_and_no_row(put, layout):
    put("embeddings", f"{INVERSION}.safetensors", {"emb_params": torch.randn(2, 768)})
    drawn, plain = layout(f"a embedding:{INVERSION} cat"), layout("a cat")
    assert [word.text for word in drawn.columns] == [
        "<start>", "a", "(embedding)", "(embedding)", "cat", "<end>"
    ]  # fmt: skip
    assert drawn.rows == plain.rows


def test_what_is_not_drawn_is_told(layout):
    assert "68 tokens, not drawn" in layout("a blue sheep, a brown vase").notes[0]
    (_, cut) = layout(LONG).notes
    assert len(layout(LONG).rows) == 64 and "the first 64 of the LLM's" in cut
    assert "words" not in layout("").notes[0]


def test_the_shares_told_are_the_weights(layout, weights):
    from llm4gen.nodes.drawing.attention_map import percent  # noqa: PLC0415

    mean = weights("a cat").mean((0, 1))
    told = [percent(part.sum().item()) for part in mean.split([1, 2, 1, 73])]
    assert all(f"{share} to" in layout("a cat").notes[0] for share in told)


def test_every_word_is_written_beside_its_own_row_and_column(layout):
    """Another word changes the picture there and nowhere else."""
    from llm4gen.nodes.drawing.attention_map import CELL, Label  # noqa: PLC0415

    drawn = layout("a blue sheep, a brown vase")
    before = np.asarray(drawn.draw()).astype(int)
    (left, top), at = drawn.corner(0), 3
    for side in ("rows", "columns"):
        words = list(getattr(drawn, side))
        words[at] = Label(words[at].text[::-1])
        changed = np.abs(np.asarray(replace(drawn, **{side: words}).draw()) - before).sum(-1).nonzero()
        y, x = (int(place.mean()) for place in changed)
        if side == "rows":
            assert x < left and 0 <= y - top - at * CELL < CELL
        else:
            assert np.corrcoef(*changed[:2])[0, 1] < -0.5, "rises to the right"
            assert y < top and 0 <= (x - left - at * CELL) - (top - y) < CELL


def test_one_scale_for_all_heads_and_their_mean_is_the_average(layout):
    each, average = layout(PROMPTS[0], "each"), layout(PROMPTS[0])
    assert each.names == [f"head {number}" for number in range(1, 9)] and average.names == [""]
    np.testing.assert_allclose(each.weights.mean(0), average.weights[0], rtol=1e-5)


def test_marks_beyond_the_scale_do_not_stretch_it(layout):
    drawn = layout(PROMPTS[0])
    much = drawn.weights.copy()
    much[:, :, 0] = 0.9
    higher = replace(drawn, weights=much)
    assert higher.scale == drawn.scale
    assert (
        np.array_equal(higher.shades[:, :, 1:], drawn.shades[:, :, 1:])
        and higher.shades[:, :, 0].min() == 255
    )


@pytest.mark.parametrize(("heads", "which"), [("average", "The average of 8"), ("each", "Each of 8")])
def test_what_is_told_above_and_below_stands_in_the_picture(heads, which, layout):
    from llm4gen.nodes.drawing.attention_map import FAINT, HEADING_SIZE, INK  # noqa: PLC0415

    drawn, empty = layout(LONG, heads), layout("", heads)
    picture = drawn.draw()
    lines = [drawn.caption, *drawn.notes]
    assert f"{which} heads." in drawn.caption and len(lines) == 3
    heights = [place_of(picture, line, FAINT)[1] for line in lines]
    assert heights == sorted(heights)
    assert place_of(empty.draw(), "(empty prompt)", INK, HEADING_SIZE)
    assert place_of(layout("two\n  words", heads).draw(), "“two words”", INK, HEADING_SIZE)


def test_the_legend_runs_from_the_least_to_the_most_of_the_words(layout):
    from llm4gen.nodes.drawing.attention_map import INK, LEGEND, RAMP, percent  # noqa: PLC0415

    drawn = layout(PROMPTS[0])
    words = drawn.weights[:, :, 1:-1]
    least, most = percent(words.min()), percent(words.max())
    beyond = drawn.weights.copy()
    beyond[:, 2, 0] = 0.9
    within = np.minimum(drawn.weights, words.max())
    for weights, more in ((beyond, " and more"), (within, "")):
        picture = replace(drawn, weights=weights).draw()
        left, y = place_of(picture, least, INK)
        right, level = place_of(picture, f"{most}{more} of a row's attention", INK)
        ramp = [picture.getpixel((right - 6 - LEGEND[0] + x, y)) for x in (0, LEGEND[0] - 1)]
        assert left < right and y == level
        np.testing.assert_allclose(ramp, RAMP[[0, -1]], atol=3)


def test_shares_are_told_in_two_digits():
    from llm4gen.nodes.drawing.attention_map import percent  # noqa: PLC0415

    assert [percent(share) for share in (0.5, 0.034, 0.0084)] == ["50 %", "3.4 %", "0.84 %"]


def test_marks_are_paler_than_words(layout):
    from llm4gen.nodes.drawing.attention_map import FAINT, INK, Label  # noqa: PLC0415

    drawn = layout(PROMPTS[0])
    rows = [Label("sheep", is_special=True), Label("vase"), *drawn.rows[2:]]
    picture = replace(drawn, rows=rows).draw()
    assert place_of(picture, "sheep", FAINT)[1] < place_of(picture, "vase", INK)[1]
    columns = [Label("", is_special=word.is_special) for word in drawn.columns]
    darkest = []
    for mark in (True, False):
        columns[2] = Label("sheep", is_special=mark)
        shown = replace(drawn, columns=columns)
        darkest.append(np.asarray(shown.draw())[shown.top : shown.corner(0)[1]].min())
    assert darkest[0] > darkest[1] + 40


def test_panels_run_like_lines_of_a_page_each_under_its_own_name(layout):
    from llm4gen.nodes.drawing.attention_map import INK  # noqa: PLC0415

    drawn = layout(PROMPTS[0], "each")
    picture, corners = drawn.draw(), [drawn.corner(panel) for panel in range(8)]
    assert corners == sorted(corners, key=lambda corner: corner[::-1])
    for name, (left, top) in zip(drawn.names, corners, strict=True):
        x, y = place_of(picture, name, INK)
        assert x == left - drawn.row_labels_width and top - drawn.column_labels_height < y < top
