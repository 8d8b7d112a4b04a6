"""From words to conditioning, with the host's real CLIP and sampler on stand-in weights."""

import logging

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, T5Config, T5EncoderModel

import in_process
from paths import T5_TOKENIZER
from sandbox.standins import ADAPTER, ENCODER

PROMPTS = [
    "a blue sheep next to a brown vase, behind them a red bookcase and a window with yellow curtains",
    "",
    "青い羊 🐑 naïve café",
    "a (blue:1.3) sheep, [brown] vase \\(tall\\)",
]
WORDS = [*PROMPTS[:3], "a blue sheep, [brown] vase (tall)"]


def t5_states(text):
    """The LLM half's input as transformers computes it: the published text path on the stand-in's weights."""
    weights = load_file(in_process.standins() / "text_encoders" / ENCODER)
    weights = {
        n.removeprefix("t5_encoder."): t.float() for n, t in weights.items() if n.startswith("t5_encoder.")
    }
    config = T5Config(
        d_model=2048, d_kv=64, d_ff=5120, num_heads=32, num_layers=2, feed_forward_proj="gated-gelu"
    )
    with torch.device("meta"):
        encoder = T5EncoderModel(config).eval()
    encoder.load_state_dict(weights, strict=False, assign=True)
    encoder.encoder.embed_tokens = encoder.shared
    ids = AutoTokenizer.from_pretrained(str(T5_TOKENIZER))("pre " + text)["input_ids"]
    padded = torch.tensor([ids + [0] * (256 - len(ids))])
    mask = torch.tensor([[1] * len(ids) + [0] * (256 - len(ids))])
    return encoder(input_ids=padded, attention_mask=mask).last_hidden_state


def fused_tokens(clip_states, llm_states):
    """The published module, in a few lines of its own: [1, 77, 768], [1, 256, 2048] → [1, 256, 768]."""
    weights = torch.load(in_process.standins() / "llm4gen" / ADAPTER, weights_only=True)
    part = {name.removeprefix("CrossFusionModule.0."): tensor for name, tensor in weights.items()}

    def linear(name, x):
        return x @ part[f"{name}.weight"].T + part[f"{name}.bias"]

    def norm(name, x):
        return torch.nn.functional.layer_norm(x, (768,), part[f"{name}.weight"], part[f"{name}.bias"])

    def heads(x):
        return x.unflatten(-1, (8, 96)).transpose(1, 2)

    x = linear("llm_proj", llm_states)
    clip = norm("q_norm", clip_states)
    query, key, value = (
        heads(linear("q_proj", norm("kv_norm", x))),
        heads(linear("k_proj", clip)),
        heads(linear("v_proj", clip)),
    )
    seen = (query @ key.transpose(-1, -2) * 96**-0.5).softmax(-1) @ value
    x = x + linear("out_proj", seen.transpose(1, 2).flatten(-2))
    inner = linear("FFN.0", norm("norm", x))
    return x + linear("FFN.2", inner * torch.sigmoid(1.702 * inner))


@pytest.mark.floor
@pytest.mark.parametrize(("text", "words"), list(zip(PROMPTS, WORDS, strict=True)))
@torch.inference_mode()
def test_clip_half_is_cores_and_llm_half_is_the_published_module_on_it(text, words, condition, clip, encode):
    ((states, options),) = condition(text)
    ((core_states, core_options),) = encode(clip, text)
    assert states.shape == (1, 77 + 256, 768)
    assert torch.equal(states[:, :77], core_states)
    assert options.keys() == core_options.keys() | {"cross_attn_controlnet"}
    assert torch.equal(options["cross_attn_controlnet"], core_states)
    assert torch.equal(options["pooled_output"], core_options["pooled_output"])
    llm_states = t5_states(words)
    if "blue:1.3" in text:  # by the host's rule, on the one token that is weighed
        at = AutoTokenizer.from_pretrained(str(T5_TOKENIZER)).tokenize("pre " + words).index("\u2581blue")
        nothing = t5_states("")[:, at]
        llm_states[:, at] = (llm_states[:, at] - nothing) * 1.3 + nothing
    expected = fused_tokens(core_states, llm_states)
    assert (states[:, 77:] - expected).abs().max() <= 1e-4


def test_strength_0_is_core_and_others_scale_the_llm_half(condition, clip, encode):
    whole = condition(PROMPTS[0])[0][0]
    none = condition(PROMPTS[0], strength=0.0)[0][0]
    assert torch.equal(none, encode(clip, PROMPTS[0])[0][0])
    for strength in (0.35, 2.0):
        part = condition(PROMPTS[0], strength=strength)[0][0]
        assert torch.equal(part[:, :77], whole[:, :77])
        torch.testing.assert_close(part[:, 77:], strength * whole[:, 77:])


def test_llm_text_replaces_what_the_llm_reads_and_nothing_else(condition):
    same, other = condition("a cat")[0][0], condition("a cat", llm_text="a dog on a sofa")[0][0]
    assert torch.equal(condition("a cat", llm_text="a cat")[0][0], same)
    assert torch.equal(other[:, :77], same[:, :77])
    assert not torch.equal(other[:, 77:], same[:, 77:])
    assert not torch.equal(condition("a cat", llm_text="")[0][0], same)


LONG = "a red house by the sea, " * 20  # 160 CLIP tokens


def test_a_long_prompt_is_cut_or_kept_as_chosen(condition, clip, encode):
    cut = condition(LONG)[0][0]
    assert cut.shape[1] == 77 + 256
    assert torch.equal(cut[:, :77], encode(clip, LONG)[0][0][:, :77])
    kept = condition(LONG, long_prompt="chunks of 77")[0][0]
    core = encode(clip, LONG)[0][0]
    assert core.shape[1] > 77
    assert torch.equal(kept[:, : core.shape[1]], core) and kept.shape[1] == core.shape[1] + 256


def test_what_is_cut_off_is_logged_by_half(condition, caplog):
    with caplog.at_level(logging.WARNING):
        condition("word " * 70)
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING):
        condition("word " * 300)
        condition("word " * 300)  # remembered, and told all the same
    clip_half, llm_half = caplog.messages[:2]
    assert caplog.messages[2:] == [clip_half, llm_half]
    assert "CLIP" in clip_half and "225 tokens" in clip_half
    assert "LLM" in llm_half and "45 tokens" in llm_half


@pytest.mark.floor
@pytest.mark.parametrize("negative", ["", LONG, "ugly"])
def test_the_pair_is_sampled_with_one_unet_call_a_step(negative, condition, sample):
    assert sample(condition(PROMPTS[0]), condition(negative)).calls == [(2, 333, 768)] * 2


def test_a_pair_of_unequal_length_takes_two(condition, clip, encode, sample):
    assert len(sample(condition(PROMPTS[0]), encode(clip, "")).calls) == 4
