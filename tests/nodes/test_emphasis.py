"""Emphasis (prompt weighting) gives each letter the same weight in both halves, as ComfyUI's own parser decides."""

import pytest
import torch

pytestmark = pytest.mark.floor

CASES = [
    "a red cat",
    "a (red) cat",
    "a (red:1.3) cat",
    "a (red cat:1.3)",
    "(a red cat)",
    "((a red cat))",
    "(((a red cat)))",
    "a ((red) cat)",
    "a ((red:1.5) cat)",
    "a ((red:1.5) cat:0.7)",
    "a (red (fat:0.5) old:1.2) cat",
    "(red:1.1)(blue:1.2)(green:0.3)",
    "(red:1.1) (blue:1.2) (green:0.3)",
    "(the:0)end",
    "a (cat:-1)",
    "a (cat:1)",
    "a (cat:1.0)",
    "a (cat:.5)",
    "a (cat: 1.3 )",
    "a (cat:1e1)",
    "a (cat:big)",
    "a (cat:)",
    "a (:1.3) cat",
    "() cat",
    "(16:9) picture",
    "(ratio 16:9:1.2)",
    r"a cat \(sitting\)",
    r"a (cat \(sitting\):1.4)",
    r"(a \( b:1.2)",
    "a (red cat",
    "a red) cat",
    "a ) red ( cat",
    "a )(red:1.2) cat",
    "a (red:1.2)) cat",
    "(multi\nline:1.3) text",
    "BREAK (one:1.2) BREAK two",
    "(Cat:1.2), (DOG:0.8), Bird",
    "(a, b, c:1.2), d; e. f!",
]


def letters(tokens):
    """(text, weight) of each token → (letter, weight) of each letter, however the text is divided into tokens."""
    return [(letter, weight) for text, weight in tokens for letter in text.lower() if not letter.isspace()]


def clip_letters(fused, tokens):
    names = fused.tokenizer.clip_l.inv_vocab
    named = [(names[token], weight) for chunk in tokens["l"] for token, weight in chunk]
    return letters((name.removesuffix("</w>"), weight) for name, weight in named if not name.startswith("<|"))


def llm_letters(fused, tokens):
    name = fused.fusion.llm.llm.tokenizer.convert_ids_to_tokens
    named = [(name(token).replace("\u2581", " "), weight) for token, weight in tokens["llm4gen"][0]]
    (template, *text, end) = named
    assert (template, end) == ((" pre", 1.0), ("</s>", 1.0))
    return letters(text)


@pytest.mark.parametrize("text", CASES)
def test_every_letter_has_the_same_weight_in_both_halves(text, fused):
    tokens = fused.tokenize(text)
    assert llm_letters(fused, tokens) == clip_letters(fused, tokens)


@pytest.mark.parametrize("text", CASES)
def test_emphasis_does_not_change_the_llms_tokens(text, fused):
    from llm4gen.nodes.prompt import weighted_text  # noqa: PLC0415

    plain = weighted_text(text).text.replace("(", r"\(").replace(")", r"\)")
    ids, plain_ids = ([token for token, _ in fused.tokenize(t)["llm4gen"][0]] for t in (text, plain))
    assert ids == plain_ids


def test_a_token_with_letters_of_two_weights_gets_that_of_its_first_letter(fused):
    """The plain text is divided into tokens, so a token may begin under one weight and end under another."""
    (_, word, *_) = fused.tokenize("un(believ:1.4)able")["llm4gen"][0]
    first, *others = llm_letters(fused, fused.tokenize("un(believ:1.4)able"))
    assert first == ("u", 1.0) and {letter for letter, _ in others} <= set("unbelievable")
    assert word == fused.tokenize("unbelievable")["llm4gen"][0][1]


@torch.inference_mode()
def test_weights_of_1_change_nothing(fused):
    plain = fused.encode("a red cat on a (mat)".replace("(", "").replace(")", ""))
    for text in ("a (red:1.0) cat on a mat", "a (red:1) (cat:1.0) on (a mat:1)"):
        assert torch.equal(fused.encode(text), plain)


@torch.inference_mode()
def test_a_weight_scales_the_states_difference_from_the_empty_prompts(fused):
    def states(text):
        features = fused.fusion.features(fused.tokenize(text)["llm4gen"][0])
        return features.rows.expand(features.states)

    plain, empty, weighted = states("a red cat"), states(""), states("a (red:1.7) cat")
    names = fused.fusion.llm.llm.tokenizer.convert_ids_to_tokens
    at = [names(token) for token, _ in fused.tokenize("a red cat")["llm4gen"][0]].index("\u2581red")
    torch.testing.assert_close(weighted[at], empty[at] + 1.7 * (plain[at] - empty[at]))
    others = [position for position in range(256) if position != at]
    assert torch.equal(weighted[others], plain[others])


@torch.inference_mode()
def test_with_weights_disabled_both_halves_read_the_syntax_as_text(fused):
    tokens = fused.tokenize("a (red:1.3) cat", disable_weights=True)
    assert llm_letters(fused, tokens) == clip_letters(fused, tokens)
    assert {weight for _, weight in llm_letters(fused, tokens)} == {1.0}
    assert "(" in [letter for letter, _ in llm_letters(fused, tokens)]
