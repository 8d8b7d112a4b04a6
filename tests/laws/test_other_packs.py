"""What nodes of other packs do with a CLIP keeps the LLM's half, or the user is told and LLM4GEN Fuse Conditioning
repairs it."""

import pytest
import torch

import foreign_pack
import in_process
from in_process import SHORT
from tiny import identical, relative_error

LONG = "a red house by the sea, " * 20  # 160 CLIP tokens
PROMPTS = ["", SHORT, "a (blue:1.3) sheep, [brown] vase \\(tall\\)", "青い羊 🐑 naïve café"]
CHUNKS = "chunks of 77"
WARNING = "Put LLM4GEN Fuse Conditioning after this node"


@pytest.fixture(scope="module")
def fuse_conditioning(started, llm, adapter):
    """LLM4GEN Fuse Conditioning as a function."""

    def fuse_conditioning(conditioning, text, **settings):
        node = started.ours["LLM4GEN_FuseConditioning"]
        inputs = {"conditioning": conditioning, "llm": llm, "adapter": adapter, "text": text}
        with torch.inference_mode():
            return in_process.run(node, **inputs, **settings)

    return fuse_conditioning


def foreign(node, clip, text):
    with torch.inference_mode():
        return node().encode(clip, text)[0]


# LLM4GEN Fuse Conditioning


@pytest.mark.floor
@pytest.mark.parametrize("text", PROMPTS)
@pytest.mark.parametrize("settings", [{}, {"strength": 0.35}, {"controlnet_context": "fused"}], ids=str)
def test_clip_text_encode_and_fuse_equals_llm4gen_conditioning(
    text, settings, clip, encode, condition, fuse_conditioning
):
    assert identical(fuse_conditioning(encode(clip, text), text, **settings), condition(text, **settings))


def test_a_conditioning_of_several_chunks_is_fused_like_a_long_prompt(
    clip, encode, condition, fuse_conditioning
):
    assert identical(fuse_conditioning(encode(clip, LONG), LONG), condition(LONG, long_prompt=CHUNKS))


def test_strength_0_returns_the_conditioning(clip, encode, fuse_conditioning):
    conditioning = encode(clip)
    assert identical(fuse_conditioning(conditioning, SHORT, strength=0.0), conditioning)


def test_every_entry_of_a_schedule_is_fused_and_keeps_its_options(clip, encode, condition, fuse_conditioning):
    entries = [
        [encode(clip, text)[0][0], {"start_percent": start, "cross_attn_controlnet": None, "own": text}]
        for start, text in ((0.0, "a cat"), (0.5, "a dog"))
    ]
    del entries[0][1]["cross_attn_controlnet"]
    fused = fuse_conditioning(entries, SHORT)
    for (states, options), (core, own) in zip(fused, entries, strict=True):
        assert torch.equal(states[:, :77], core) and states.shape == (1, 333, 768)
        assert options.items() >= own.items()
    assert not torch.equal(fused[0][0][:, 77:], fused[1][0][:, 77:]), (
        "the LLM attends to each entry's own states"
    )


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 77, 2048), {}, "2048 wide.*768"),
        ((1, 333, 768), {}, "333 tokens.*multiple of CLIP's 77"),
        ((1, 128, 768), {}, "128 tokens.*multiple of CLIP's 77"),
        ((1, 77, 768), {"llm4gen_fused": True}, "carries an LLM's half already"),
    ],
)
def test_what_is_not_clips_alone_is_refused(shape, options, message, fuse_conditioning):
    with pytest.raises(Exception, match=message) as error:
        fuse_conditioning([[torch.randn(shape), options]], SHORT)
    assert type(error.value).__module__ == "llm4gen"


def test_our_own_conditioning_is_refused_in_every_form(condition, fuse_conditioning):
    for settings in ({}, {"controlnet_context": "fused"}):
        with pytest.raises(Exception, match="already"):
            fuse_conditioning(condition(SHORT, **settings), SHORT)
        rebuilt = [[states, {}] for states, _ in condition(SHORT, **settings)]
        with pytest.raises(Exception, match="333 tokens"):
            fuse_conditioning(rebuilt, SHORT)


# Nodes that encode past the LLM


@pytest.mark.parametrize("text", PROMPTS)
def test_a_node_that_encodes_clips_tokens_alone_is_named_and_fuse_conditioning_repairs_it(
    text, clip, fused, encode, fuse_conditioning, caplog
):
    conditioning = foreign(foreign_pack.EncodeOwnTokens, fused, text)
    assert conditioning[0][0].shape[1] == 77
    assert WARNING in caplog.text
    expected = encode(fused, text)
    repaired = fuse_conditioning(conditioning, text)
    assert torch.equal(repaired[0][0], expected[0][0])
    assert torch.equal(repaired[0][1]["cross_attn_controlnet"], expected[0][1]["cross_attn_controlnet"])
    past = foreign(foreign_pack.EncodePastTheCLIP, clip, text)
    assert torch.equal(fuse_conditioning(past, text)[0][0], expected[0][0])


def test_strength_0_and_ordinary_nodes_give_no_warning(clip, fuse, fused, encode, condition, caplog):
    foreign(foreign_pack.EncodeOwnTokens, fuse(clip, strength=0.0), SHORT)
    encode(fused), condition(SHORT), foreign(foreign_pack.EncodeJoinedParts, fused, "a cat BREAK a dog")
    assert WARNING not in caplog.text


# Joined parts


@pytest.mark.parametrize("long_prompt", ["cut at 77 (as published)", CHUNKS])
def test_joined_parts_give_the_tokens_of_each_part_alone(long_prompt, clip, fuse, encode):
    fused = fuse(clip, long_prompt=long_prompt)
    ((states, options),) = foreign(foreign_pack.EncodeJoinedParts, fused, f"{SHORT} BREAK a (blue:1.2) dog")
    first, second = (encode(fused, text)[0][0] for text in (SHORT, "a (blue:1.2) dog"))
    expected = torch.cat([first[:, :77], second[:, :77], first[:, 77:], second[:, 77:]], dim=1)
    assert torch.equal(states, expected)
    assert torch.equal(options["cross_attn_controlnet"], states[:, :154])


def test_joined_parts_sample_as_conditioning_concat(started, fused, encode, sample):
    joined = foreign(foreign_pack.EncodeJoinedParts, fused, f"{SHORT} BREAK a blue dog")
    (concatenated,) = started.core.ConditioningConcat().concat(encode(fused), encode(fused, "a blue dog"))
    for entry in (*joined, *concatenated):
        entry[1].pop("cross_attn_controlnet", None)
    latents = [sample(positive, encode(fused, "")).samples for positive in (joined, concatenated)]
    assert relative_error(*latents) <= 1e-5
    one = sample(encode(fused), encode(fused, "")).samples
    assert relative_error(one, latents[1]) > 1e-3


# Lists of texts


def test_texts_in_one_call_equal_each_alone(fused):
    texts = [SHORT, "a dog in the snow", "a (blue:1.3) sheep"]
    together = foreign(foreign_pack.EncodeListOfTexts, fused, "|".join(texts))
    alone = [foreign(foreign_pack.EncodeListOfTexts, fused, text)[0] for text in texts]
    assert [states.shape for states, _ in together] == [(1, 333, 768)] * 3
    assert identical(together, alone)


def test_a_list_of_one_plain_text_equals_the_text(fused, encode):
    ((states, _),) = foreign(foreign_pack.EncodeListOfTexts, fused, SHORT)
    assert torch.equal(states, encode(fused)[0][0])


def test_a_list_of_long_texts_is_cut_or_in_chunks(clip, fuse, caplog):
    text = f"{SHORT} BREAK a dog in the snow"
    ((cut, _),) = foreign(foreign_pack.EncodeListOfTexts, fuse(clip), text)
    assert cut.shape[1] == 77 + 256
    assert "last 5 tokens do not fit into 77" in caplog.text
    ((chunks, _),) = foreign(foreign_pack.EncodeListOfTexts, fuse(clip, long_prompt=CHUNKS), text)
    assert chunks.shape[1] == 2 * 77 + 256


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a [blue] ((sheep)) (vase:1.3)", "a blue sheep vase"),
        ("a cat BREAK a dog", "a cat, a dog"),
        ("a cat, BREAK\na dog", "a cat, a dog"),
        ("a \\(tall\\) vase", "a (tall) vase"),
        ("a (blue)++ sheep, [vase]--", "a blue sheep, vase"),
        ("a blue++ sheep, red--- vase", "a blue sheep, red vase"),
        ("a blue-green vase -- with text: 1:2", "a blue-green vase -- with text: 1:2"),
        ("a (cat", "a cat"),
        ("a cat, (embedding:bad-hands:1.2), embedding:EasyNegative", "a cat"),
        ("a cat) and]", "a cat) and]"),
        ("a (cat:x) :", "a cat:x :"),
    ],
)
def test_the_llm_reads_no_syntax_of_a1111_as_words_in_a_list(text, plain, fused, llm, adapter):
    with foreign_pack.texts_as_tokens(fused):
        ((chunk,),) = fused.tokenize([text])["llm4gen"]
    assert [token for token, *_ in chunk] == list(llm.llm.tokenize(plain, adapter.recipe).ids)


def test_a1111s_weights_are_those_of_the_brackets():
    from llm4gen.nodes.prompt import a1111_text  # noqa: PLC0415

    read = a1111_text("a [b] ((c)) (d:1.5) (e (f:2)) g++")
    weights = dict(zip(read.text, read.weights, strict=True))
    expected = {"a": 1, "b": 1 / 1.1, "c": 1.21, "d": 1.5, "e": 1.1, "f": 2.2, "g": 1.21}
    assert {letter: weights[letter] for letter in expected} == pytest.approx(expected)


# A key and a value for each token


@torch.inference_mode()
def test_keys_and_values_without_negative_weights_sample_as_without_them(
    model, clip, fused, encode, sample, fuse
):
    for source in (fused, None):
        patched_model, patched = foreign_pack.KeysAndValues().patch(model, source or clip)
        patched = patched if source else fuse(patched)
        for text in (SHORT, "a (red:1.3) cat"):
            ((states, options),) = encode(patched, text)
            assert states.shape[1] == 2 * 333
            assert torch.equal(options["cross_attn_controlnet"], encode(clip, text)[0][0])
            plain = sample(encode(fused, text), encode(fused, "")).samples
            pairs = sample(encode(patched, text), encode(patched, ""), model=patched_model).samples
            assert torch.equal(pairs, plain)


@torch.inference_mode()
def test_a_negative_weight_negates_the_values_of_both_halves(
    model, fused, encode, sample, fuse_conditioning, clip
):
    _, patched = foreign_pack.KeysAndValues().patch(model, fused)
    text = "a (red:-1.0) cat"
    ((states, _),) = encode(patched, text)
    keys, values = states[:, 0::2], states[:, 1::2]
    negated = (keys == -values).all(-1)[0] & (keys != 0).any(-1)[0]
    letters = [token for token, weight in fused.tokenize(text)["l"][0] if weight < 0]
    assert negated[:77].sum() == len(letters) == 1
    weights = [weight for _, weight in fused.tokenize(text)["llm4gen"][0]]
    assert negated[77:].tolist() == [weight < 0 for weight in weights] + [False] * (256 - len(weights))
    assert torch.equal(keys, encode(fused, "a red cat")[0][0])
    _, plain_pairs = foreign_pack.KeysAndValues().patch(model, clip)
    repaired = fuse_conditioning(foreign(foreign_pack.EncodeOwnTokens, plain_pairs, text), text)
    assert torch.equal(repaired[0][0], states)


def test_a_conditioning_of_zeros_is_not_taken_for_keys_and_values(fuse_conditioning):
    """Conditioning (Zero Out) makes zeros, whose key and value would be equal as well."""
    even = [[torch.zeros(1, 154, 768), {}]]
    assert fuse_conditioning(even, SHORT)[0][0].shape[1] == 154 + 256


# Entries rebuilt by others


def test_fuse_conditioning_gives_a_rebuilt_entry_clips_tokens_for_controlnets(
    clip, encode, fuse_conditioning
):
    ((states, options),) = encode(clip)
    rebuilt = [[states, {"pooled_output": options["pooled_output"]}]]
    assert torch.equal(fuse_conditioning(rebuilt, SHORT)[0][1]["cross_attn_controlnet"], states)
