"""LLM4GEN Attention Map: the colours equal the computed attention weights, and labels name the tokens."""

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
    """Runs the node and returns its picture."""

    def draw(text, **settings):
        inputs = {"clip": clip, "llm": llm, "adapter": adapter, "text": text} | settings
        with torch.inference_mode():
            return in_process.run(started.ours["LLM4GEN_Attention"], **inputs)

    return draw


@pytest.fixture(scope="module")
def attention_map_of(fused):
    """The `AttentionMap` that the node draws: weights, labels and their places."""
    from llm4gen.nodes.attention import attention_map  # noqa: PLC0415

    @cache
    def attention_map_of(text, heads="average"):
        with torch.inference_mode():
            return attention_map(fused, text, heads)

    return attention_map_of


@pytest.fixture(scope="module")
def weights(clip, adapter, encode, fused):
    """Attention weights from core's CLIP states and the Cross-Adapter alone: [heads, LLM tokens, 77]."""

    def weights(text):
        states, tokens = encode(clip, text)[0][0][:, :77], fused.tokenize(text)["llm4gen"][0]
        with torch.inference_mode():
            return adapter.adapter.attention_weights(
                states, fused.fusion.features(tokens).states[None, : len(tokens)]
            )[0]

    return weights


def colours_at(picture, drawn, panels, rows, columns):
    """The colours in the middle of the cells: [panels, rows, columns, 3], 0 to 255."""
    places = [drawn.middle(p, r, c) for p in range(panels) for r in range(rows) for c in range(columns)]
    x, y = np.array(places).T
    return (picture[0].numpy()[y, x] * 255).round().reshape(panels, rows, columns, 3)


def find_text(picture, text, colour, size=13):
    """The position of a text in a picture, as (left, middle); None if the text is not there."""
    from llm4gen.nodes.drawing.attention_map import PAPER  # noqa: PLC0415
    from llm4gen.nodes.drawing.text import width, write  # noqa: PLC0415

    stencil = Image.new("RGB", (width(text, size), 16), PAPER)
    write(stencil, (0, 8), text, size, colour)
    stencil, pixels = np.asarray(stencil), np.asarray(picture)
    high, wide, _ = stencil.shape
    for top in range(len(pixels) - high):
        at = -1
        while (at := pixels[top + 8].tobytes().find(stencil[8].tobytes(), at + 1)) >= 0:
            part = pixels[top : top + high, at // 3 : at // 3 + wide]
            if at % 3 == 0 and np.array_equal(part, stencil):
                return at // 3, top + 8
    return None


@pytest.mark.parametrize("heads", ["average", "each"])
@pytest.mark.parametrize("text", PROMPTS, ids=["plain", "emphasis", "scripts", "long", "empty"])
def test_the_colour_of_a_cell_shows_where_its_weight_lies_on_the_scale(
    text, heads, draw, attention_map_of, weights, clip
):
    from llm4gen.nodes.drawing.attention_map import RAMP  # noqa: PLC0415

    picture, expected = draw(text, heads=heads), weights(text)
    assert picture.ndim == 4 and (picture.shape[0], picture.shape[3]) == (1, 3)
    assert picture.dtype == torch.float32 and picture.min() >= 0 and picture.max() <= 1
    used = 2 + sum(word > 0 for _, _, word in clip.tokenize(text, return_word_ids=True)["l"][0])
    expected = (expected if heads == "each" else expected.mean(0, keepdim=True))[:, :64, :used].numpy()
    text_weights = expected[:, :, 1:-1] if used > 2 else expected
    place = ((expected - text_weights.min()) / (text_weights.max() - text_weights.min())).clip(0, 1) * 255
    colours = colours_at(picture, attention_map_of(text, heads), *expected.shape)
    below, above = ((colours == RAMP[rounded(place).astype(int)]).all(-1) for rounded in (np.floor, np.ceil))
    assert (below | above).all()
    assert text_weights.max() > 1.5 * text_weights.min()


def test_the_colour_ramp_darkens_evenly():
    from llm4gen.nodes.drawing.attention_map import RAMP  # noqa: PLC0415

    part = RAMP / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    lightness = 116 * np.cbrt(linear @ (0.2126, 0.7152, 0.0722)) - 16
    assert np.abs(lightness - np.linspace(97, 25, len(RAMP))).max() <= 1.5


def test_rows_are_the_tokens_of_the_llm_and_columns_are_those_of_clip(attention_map_of):
    drawn = attention_map_of("a (blue:1.3) sheep, \\(old\\)")
    assert [label.text for label in drawn.rows if label.is_special] == ["pre", "</s>"]
    text = "".join(label.text.replace("(space)", "") for label in drawn.rows[1:-1])
    assert text == "ablue" + "sheep" + ",(old)"
    assert [label.text for label in drawn.columns] == [
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
    assert [label.is_special for label in drawn.columns] == [True, *[False] * 7, True]


def test_a_token_with_letters_of_the_template_and_of_the_text_counts_as_the_users(fused, adapter):
    from llm4gen.nodes.attention import attention_map  # noqa: PLC0415
    from llm4gen.nodes.fusion import Fusion  # noqa: PLC0415

    other_adapter = copy(adapter)
    other_adapter.recipe = replace(adapter.recipe, template="a re{text}s, please")
    with torch.inference_mode():
        drawn = attention_map(
            fused.around(fused.plain(), Fusion(fused.fusion.llm, other_adapter)), "d cat", "average"
        )
    rows = [(label.text, label.is_special) for label in drawn.rows if label.text != "(space)"]
    template_rows = [("a", True), (",", True), ("please", True), ("</s>", True)]
    assert rows == [template_rows[0], ("red", False), ("cats", False), *template_rows[1:]]


def test_a_space_in_the_users_text_does_not_make_a_template_token_the_users(started):
    """Qwen's tokenizer writes the space before a word into the word's token."""
    from llm4gen.models.recipe import Recipe  # noqa: PLC0415
    from llm4gen.nodes.drawing.token_labels import users_tokens  # noqa: PLC0415

    folder = COMFYUI / "comfy" / "text_encoders" / "qwen25_tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template, text = "user:{text}assistant", " a cat "
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(template.format(text=text))["input_ids"])
    assert tokens == ["user", ":", "Ġa", "Ġcat", "Ġassistant"]
    assert users_tokens(tokenizer, Recipe(template=template), text) == [False, False, True, True, False]


def test_a_letter_has_at_most_four_tokens_as_utf_8_has_at_most_four_bytes_for_it():
    from llm4gen.nodes.drawing.token_labels import INCOMPLETE_LETTER, token_texts  # noqa: PLC0415

    numbered = [f"{INCOMPLETE_LETTER} {number}/4" for number in (1, 2, 3, 4)]
    assert token_texts(range(5), lambda part: INCOMPLETE_LETTER) == [*numbered, INCOMPLETE_LETTER]


def test_the_tokens_of_one_letter_are_numbered(attention_map_of):
    drawn = [label.text for label in attention_map_of("青い羊 🐑").columns]
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


def test_a_textual_inversion_has_a_column_for_each_vector_and_no_row(put, attention_map_of):
    put("embeddings", f"{INVERSION}.safetensors", {"emb_params": torch.randn(2, 768)})
    drawn, plain = attention_map_of(f"a embedding:{INVERSION} cat"), attention_map_of("a cat")
    assert [label.text for label in drawn.columns] == [
        "<start>", "a", "(embedding)", "(embedding)", "cat", "<end>"
    ]  # fmt: skip
    assert drawn.rows == plain.rows


def test_the_notes_say_what_is_not_drawn(attention_map_of):
    assert "68 tokens, not drawn" in attention_map_of("a blue sheep, a brown vase").notes[0]
    (_, cut_note) = attention_map_of(LONG).notes
    assert len(attention_map_of(LONG).rows) == 64 and "the first 64 of the LLM's" in cut_note
    assert "words" not in attention_map_of("").notes[0]


def test_the_shares_in_the_note_equal_the_weights(attention_map_of, weights):
    from llm4gen.nodes.drawing.attention_map import percent  # noqa: PLC0415

    mean = weights("a cat").mean((0, 1))
    shares = [percent(part.sum().item()) for part in mean.split([1, 2, 1, 73])]
    assert all(f"{share} to" in attention_map_of("a cat").notes[0] for share in shares)


def test_every_label_is_written_beside_its_own_row_or_column(attention_map_of):
    """Changing one label changes the picture there and nowhere else."""
    from llm4gen.nodes.drawing.attention_map import CELL, Label  # noqa: PLC0415

    drawn = attention_map_of("a blue sheep, a brown vase")
    before = np.asarray(drawn.draw()).astype(int)
    (left, top), index = drawn.corner(0), 3
    for side in ("rows", "columns"):
        labels = list(getattr(drawn, side))
        labels[index] = Label(labels[index].text[::-1])
        changed = np.abs(np.asarray(replace(drawn, **{side: labels}).draw()) - before).sum(-1).nonzero()
        y, x = (int(place.mean()) for place in changed)
        if side == "rows":
            assert x < left and 0 <= y - top - index * CELL < CELL
        else:
            assert np.corrcoef(*changed[:2])[0, 1] < -0.5, "the label does not rise to the right"
            assert y < top and 0 <= (x - left - index * CELL) - (top - y) < CELL


def test_the_average_map_is_the_mean_of_the_maps_of_all_heads(attention_map_of):
    each, average = attention_map_of(PROMPTS[0], "each"), attention_map_of(PROMPTS[0])
    assert each.names == [f"head {number}" for number in range(1, 9)] and average.names == [""]
    np.testing.assert_allclose(each.weights.mean(0), average.weights[0], rtol=1e-5)


def test_special_tokens_do_not_stretch_the_colour_scale(attention_map_of):
    drawn = attention_map_of(PROMPTS[0])
    weights = drawn.weights.copy()
    weights[:, :, 0] = 0.9
    higher = replace(drawn, weights=weights)
    assert higher.scale == drawn.scale
    assert (
        np.array_equal(higher.shades[:, :, 1:], drawn.shades[:, :, 1:])
        and higher.shades[:, :, 0].min() == 255
    )


@pytest.mark.parametrize(("heads", "phrase"), [("average", "The average of 8"), ("each", "Each of 8")])
def test_title_caption_and_notes_are_written_in_the_picture(heads, phrase, attention_map_of):
    from llm4gen.nodes.drawing.attention_map import FAINT, HEADING_SIZE, INK  # noqa: PLC0415

    drawn, empty = attention_map_of(LONG, heads), attention_map_of("", heads)
    picture = drawn.draw()
    lines = [drawn.caption, *drawn.notes]
    assert f"{phrase} heads." in drawn.caption and len(lines) == 3
    heights = [find_text(picture, line, FAINT)[1] for line in lines]
    assert heights == sorted(heights)
    assert find_text(empty.draw(), "(empty prompt)", INK, HEADING_SIZE)
    assert find_text(attention_map_of("two\n  words", heads).draw(), "“two words”", INK, HEADING_SIZE)


def test_the_legend_runs_from_the_lowest_to_the_highest_weight_of_the_text(attention_map_of):
    from llm4gen.nodes.drawing.attention_map import INK, LEGEND, RAMP, percent  # noqa: PLC0415

    drawn = attention_map_of(PROMPTS[0])
    text_weights = drawn.weights[:, :, 1:-1]
    low, high = percent(text_weights.min()), percent(text_weights.max())
    beyond = drawn.weights.copy()
    beyond[:, 2, 0] = 0.9
    within = np.minimum(drawn.weights, text_weights.max())
    for weights, suffix in ((beyond, " and more"), (within, "")):
        picture = replace(drawn, weights=weights).draw()
        left, y = find_text(picture, low, INK)
        right, level = find_text(picture, f"{high}{suffix} of a row's attention", INK)
        ramp = [picture.getpixel((right - 6 - LEGEND[0] + x, y)) for x in (0, LEGEND[0] - 1)]
        assert left < right and y == level
        np.testing.assert_allclose(ramp, RAMP[[0, -1]], atol=3)


def test_shares_are_written_with_two_digits():
    from llm4gen.nodes.drawing.attention_map import percent  # noqa: PLC0415

    assert [percent(share) for share in (0.5, 0.034, 0.0084)] == ["50 %", "3.4 %", "0.84 %"]


def test_labels_of_special_tokens_are_paler(attention_map_of):
    from llm4gen.nodes.drawing.attention_map import FAINT, INK, Label  # noqa: PLC0415

    drawn = attention_map_of(PROMPTS[0])
    rows = [Label("sheep", is_special=True), Label("vase"), *drawn.rows[2:]]
    picture = replace(drawn, rows=rows).draw()
    assert find_text(picture, "sheep", FAINT)[1] < find_text(picture, "vase", INK)[1]
    columns = [Label("", is_special=label.is_special) for label in drawn.columns]
    darkest = []
    for is_special in (True, False):
        columns[2] = Label("sheep", is_special=is_special)
        changed = replace(drawn, columns=columns)
        darkest.append(np.asarray(changed.draw())[changed.top : changed.corner(0)[1]].min())
    assert darkest[0] > darkest[1] + 40


def test_panels_run_from_left_to_right_and_downwards_each_below_its_name(attention_map_of):
    from llm4gen.nodes.drawing.attention_map import INK  # noqa: PLC0415

    drawn = attention_map_of(PROMPTS[0], "each")
    picture, corners = drawn.draw(), [drawn.corner(panel) for panel in range(8)]
    assert corners == sorted(corners, key=lambda corner: corner[::-1])
    for name, (left, top) in zip(drawn.names, corners, strict=True):
        x, y = find_text(picture, name, INK)
        assert x == left - drawn.row_labels_width and top - drawn.column_labels_height < y < top


@pytest.mark.parametrize(
    "text", ["a (red:nan) cat", "a (red:inf) cat", "a (red:-inf) cat", "a (red:1e39) cat"]
)
def test_a_weight_that_is_not_finite_is_refused_with_advice(text, draw):
    for heads in ("average", "each"):
        with pytest.raises(Exception, match=r"not finite.*ordinary weight") as error:
            draw(text, heads=heads)
        assert type(error.value).__module__ == "llm4gen"
