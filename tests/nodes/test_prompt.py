"""What the LLM reads of a prompt in ComfyUI's syntax."""

import pytest

import in_process


@pytest.fixture(scope="module")
def weighted_text():
    in_process.start()
    from llm4gen.nodes.prompt import weighted_text  # noqa: PLC0415

    return weighted_text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        ("a red cat", "a red cat"),
        ("a (red) cat", "a red cat"),
        ("a (red:1.3) cat", "a red cat"),
        ("a ((red:1.3) fat:0.5) cat", "a red fat cat"),
        ("(((cat)))", "cat"),
        (r"a cat \(sitting\)", "a cat (sitting)"),
        (r"(a cat \(sitting\):1.2)", "a cat (sitting)"),
        ("ratio 16:9, 10:30", "ratio 16:9, 10:30"),
        ("(ratio 16:9)", "ratio 16"),  # as CLIP: what follows the last colon is a weight if it is a number
        ("a (red cat", "a (red cat"),
        ("a red) cat", "a red) cat"),
        ("[brown] {vase}", "[brown] {vase}"),
        ("line\none\n\ttwo ", "line\none\n\ttwo "),
        ("embedding:easynegative", ""),
        ("embedding:easynegative, blurry", "blurry"),
        ("embedding:a embedding:b, (embedding:c:1.2)", ""),
        ("a cat embedding:style by the sea", "a cat by the sea"),
        ("a cat, embedding:sub/style.pt, by the sea", "a cat, by the sea"),
        ("a cat (embedding:style:1.2) by the sea", "a cat by the sea"),
        ("a cat embedding:style<lora:x:1>", "a cat <lora:x:1>"),
        ("not-embedding:x", "not-embedding:x"),
        ("青い(羊:1.4) 🐑", "青い羊 🐑"),
    ],
)
def test_words_without_syntax(text, words, weighted_text):
    read = weighted_text(text)
    assert read.text == words
    assert len(read.weights) == len(words)
