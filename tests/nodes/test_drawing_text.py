"""Text of any script in a picture: it stays within its width, and letters without a font stay distinguishable."""

import pytest

pytestmark = pytest.mark.usefixtures("started")


def test_letters_that_no_font_has_are_written_as_escapes(monkeypatch):
    from llm4gen.nodes.drawing import text as drawing  # noqa: PLC0415

    monkeypatch.setattr(drawing, "SYSTEM_FONTS", ())
    texts = [drawing.fitting_font(text, 13)[1] for text in ("sheep", "青", "羊", "\n", "🐑")]
    assert texts == ["sheep", "\\u9752", "\\u7f8a", "\\n", "\\U0001f411"]


@pytest.mark.parametrize("text", ["кот", "café", "青い羊", "x 🐑 y"])
def test_the_chosen_font_lacks_the_fewest_letters(text):
    from llm4gen.nodes.drawing.text import fitting_font, fonts, lacks  # noqa: PLC0415

    missing = sum(lacks(fitting_font(text, 13)[0], letter) for letter in text)
    assert missing == min(sum(lacks(font, letter) for letter in text) for font in fonts(13))


def test_a_long_title_is_shortened_to_as_many_letters_as_fit():
    from llm4gen.nodes.drawing.text import shortened, width  # noqa: PLC0415

    text = "a blue sheep and a brown vase"
    for most in range(width("a blue", 18), width(text, 18)):
        cut = shortened(text, 18, most)
        rest = text[len(cut) - 1 :]
        longer = text[: len(text) - len(rest.lstrip()) + 1] + "…"
        assert text.startswith(cut.removesuffix("…")) and cut.endswith("…")
        assert width(cut, 18) <= most < width(longer, 18)
    assert shortened(text, 18, width(text, 18)) == text


def test_even_a_title_of_thousands_of_letters_is_measured_only_a_few_times(monkeypatch):
    from llm4gen.nodes.drawing import text as drawing  # noqa: PLC0415

    measured = []
    monkeypatch.setattr(drawing, "width", lambda text, size: measured.append(text) or 9 * len(text))
    assert drawing.shortened("sheep " * 2000, 18, 100) == "sheep shee…"
    assert len(measured) < 20
