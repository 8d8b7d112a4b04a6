"""The LLM reads a prompt without ComfyUI's syntax."""

import pytest

import in_process


@pytest.fixture(scope="module")
def weighted_text():
    in_process.start()
    from llm4gen.nodes.prompt import weighted_text  # noqa: PLC0415

    return weighted_text


@pytest.mark.parametrize(
    ("prompt", "text"),
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
        ("(ratio 16:9)", "ratio 16"),  # as for CLIP: a number after the last colon is a weight
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
def test_emphasis_and_embeddings_are_removed_from_the_text(prompt, text, weighted_text):
    found = weighted_text(prompt)
    assert found.text == text
    assert len(found.weights) == len(text)
