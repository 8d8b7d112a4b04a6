"""From a prompt to conditioning, with ComfyUI's real CLIP and sampler on stand-in weights."""

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
TEXTS = [*PROMPTS[:3], "a blue sheep, [brown] vase (tall)"]


def t5_states(text):
    """T5's hidden states by transformers, as the published code prepares the text, on the stand-in's weights."""
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
    """The published Cross-Adapter, written anew: [1, 77, 768], [1, 256, 2048] → [1, 256, 768]."""
    weights = torch.load(in_process.standins() / "llm4gen" / ADAPTER, weights_only=True)
    tensors = {name.removeprefix("CrossFusionModule.0."): tensor for name, tensor in weights.items()}

    def linear(name, x):
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(name, x):
        return torch.nn.functional.layer_norm(x, (768,), tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def heads(x):
        return x.unflatten(-1, (8, 96)).transpose(1, 2)

    x = linear("llm_proj", llm_states)
    clip = norm("q_norm", clip_states)
    query, key, value = (
        heads(linear("q_proj", norm("kv_norm", x))),
        heads(linear("k_proj", clip)),
        heads(linear("v_proj", clip)),
    )
    attended = (query @ key.transpose(-1, -2) * 96**-0.5).softmax(-1) @ value
    x = x + linear("out_proj", attended.transpose(1, 2).flatten(-2))
    hidden = linear("FFN.0", norm("norm", x))
    return x + linear("FFN.2", hidden * torch.sigmoid(1.702 * hidden))


@pytest.mark.floor
@pytest.mark.parametrize(("text", "llm_text"), list(zip(PROMPTS, TEXTS, strict=True)))
@torch.inference_mode()
def test_the_clip_half_equals_cores_and_the_llm_half_the_published_modules(
    text, llm_text, condition, clip, encode
):
    ((states, options),) = condition(text)
    ((core_states, core_options),) = encode(clip, text)
    assert states.shape == (1, 77 + 256, 768)
    assert torch.equal(states[:, :77], core_states)
    assert options.keys() == core_options.keys() | {"cross_attn_controlnet", "llm4gen_fused"}
    assert torch.equal(options["cross_attn_controlnet"], core_states)
    assert torch.equal(options["pooled_output"], core_options["pooled_output"])
    llm_states = t5_states(llm_text)
    if "blue:1.3" in text:  # ComfyUI's rule of emphasis, for the one token with a weight
        at = AutoTokenizer.from_pretrained(str(T5_TOKENIZER)).tokenize("pre " + llm_text).index("\u2581blue")
        empty = t5_states("")[:, at]
        llm_states[:, at] = (llm_states[:, at] - empty) * 1.3 + empty
    expected = fused_tokens(core_states, llm_states)
    assert (states[:, 77:] - expected).abs().max() <= 1e-4


def test_strength_0_gives_cores_conditioning_and_others_scale_the_llm_half(condition, clip, encode):
    full = condition(PROMPTS[0])[0][0]
    without = condition(PROMPTS[0], strength=0.0)[0][0]
    assert torch.equal(without, encode(clip, PROMPTS[0])[0][0])
    for strength in (0.35, 2.0):
        scaled = condition(PROMPTS[0], strength=strength)[0][0]
        assert torch.equal(scaled[:, :77], full[:, :77])
        torch.testing.assert_close(scaled[:, 77:], strength * full[:, 77:])


def test_llm_text_replaces_the_text_for_the_llm_only(condition):
    same, other = condition("a cat")[0][0], condition("a cat", llm_text="a dog on a sofa")[0][0]
    assert torch.equal(condition("a cat", llm_text="a cat")[0][0], same)
    assert torch.equal(other[:, :77], same[:, :77])
    assert not torch.equal(other[:, 77:], same[:, 77:])
    assert not torch.equal(condition("a cat", llm_text="")[0][0], same)


LONG = "a red house by the sea, " * 20  # 160 CLIP tokens


def test_a_long_prompt_is_cut_or_encoded_in_chunks_as_chosen(condition, clip, encode):
    cut = condition(LONG)[0][0]
    assert cut.shape[1] == 77 + 256
    assert torch.equal(cut[:, :77], encode(clip, LONG)[0][0][:, :77])
    chunks = condition(LONG, long_prompt="chunks of 77")[0][0]
    core = encode(clip, LONG)[0][0]
    assert core.shape[1] > 77
    assert torch.equal(chunks[:, : core.shape[1]], core) and chunks.shape[1] == core.shape[1] + 256


def test_a_cut_is_logged_for_each_half(condition, caplog):
    with caplog.at_level(logging.WARNING):
        condition("word " * 70)
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING):
        condition("word " * 300)
        condition("word " * 300)  # from the cache now, but logged again
    clip_message, llm_message = caplog.messages[:2]
    assert caplog.messages[2:] == [clip_message, llm_message]
    assert "CLIP" in clip_message and "225 tokens" in clip_message
    assert "LLM" in llm_message and "45 tokens" in llm_message


@pytest.mark.floor
@pytest.mark.parametrize("negative", ["", LONG, "ugly"])
def test_positive_and_negative_of_equal_length_take_one_unet_call_a_step(negative, condition, sample):
    assert sample(condition(PROMPTS[0]), condition(negative)).calls == [(2, 333, 768)] * 2


def test_positive_and_negative_of_unequal_length_take_two_unet_calls_a_step(condition, clip, encode, sample):
    assert len(sample(condition(PROMPTS[0]), encode(clip, "")).calls) == 4
