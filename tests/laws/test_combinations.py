"""LLM4GEN combines with core's own nodes: LoRA, clip skip, embeddings, hooks, and changes of a conditioning."""

import logging

import pytest
import torch
from safetensors.torch import load_file

import extra_standins
import other_models
from in_process import SHORT
from other_models import FAMILIES, SDXL
from tiny import identical, untouched

LORA, INVERSION = "combined.safetensors", "combinedinversion"
CUT, CHUNKS = "cut at 77 (as published)", "chunks of 77"
LONG = "a red house by the sea, " * 20  # 160 CLIP tokens
# The layer of CLIP that a family reads, and another one.
LAYER, OTHER_LAYER = {"SD1.5": -1, "SDXL": -2}, {"SD1.5": -2, "SDXL": -1}
PROMPTS = [
    "",
    SHORT,
    "a (blue:1.3) sheep, [brown] vase \\(tall\\)",
    "青い羊 🐑 naïve café",
    "one\nBREAK two",
    LONG,
]
SETTINGS = [
    pytest.param({}, marks=pytest.mark.floor),
    {"strength": 0.35},
    {"strength": 2.0, "long_prompt": CHUNKS},
    {"controlnet_context": "fused"},
    {"strength": 0.0, "controlnet_context": "fused"},
]


pytestmark = FAMILIES


@pytest.fixture(scope="module", autouse=True)
def files(put, standin, family, model, clip):
    """Puts a LoRA and a textual inversion among ComfyUI's models."""
    vectors = {"clip_l": torch.randn(2, 768, generator=torch.Generator().manual_seed(4))}
    if family == SDXL.name:
        lora = other_models.lora(clip) | other_models.unet_lora(model)
        vectors["clip_g"] = torch.randn(2, 1280, generator=torch.Generator().manual_seed(5))
    else:
        lora = extra_standins.lora(standin)
    put("loras", LORA, lora)
    put("embeddings", f"{INVERSION}.safetensors", vectors)


@pytest.fixture(scope="module")
def load_lora(started):
    def load(model, clip, strength=1.0):
        with torch.inference_mode():
            return started.core.LoraLoader().load_lora(model, clip, LORA, strength, strength)

    return load


@pytest.fixture(scope="module")
def llm_half(llm, adapter):
    """A function that computes the LLM's half of the tokens from CLIP's states and the text."""

    def llm_half(clip_states, text):
        ids = llm.llm.tokenize(text, adapter.recipe).ids
        with torch.inference_mode():
            return adapter.fuse(clip_states, llm.features(ids, adapter.recipe))

    return llm_half


# Both nodes give the same conditioning


@pytest.mark.parametrize("text", PROMPTS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@torch.inference_mode()
def test_clip_text_encode_on_llm4gen_clip_equals_llm4gen_conditioning(
    text, settings, clip, fuse, encode, condition
):
    assert identical(encode(fuse(clip, **settings), text), condition(text, **settings))


@pytest.mark.floor
@pytest.mark.parametrize("text", PROMPTS)
def test_strength_0_equals_core(text, clip, fuse, encode):
    assert identical(encode(fuse(clip, strength=0.0, long_prompt=CHUNKS), text), encode(clip, text))
    if text != LONG:
        assert identical(encode(fuse(clip, strength=0.0), text), encode(clip, text))


# LoRA


@pytest.mark.floor
def test_a_lora_before_or_after_llm4gen_clip_gives_the_same_latent(
    model, clip, fused, fuse, encode, load_lora, sample, caplog
):
    plain = encode(fused)
    plain_latent = sample(plain, encode(fused, "")).samples
    with caplog.at_level(logging.WARNING):
        model_before, clip_before = load_lora(model, clip)
        model_after, fused_after = load_lora(model, fused)
    assert "not loaded" not in caplog.text.lower()

    fused_before = fuse(clip_before)
    assert identical(encode(fused_before), encode(fused_after))
    assert not torch.equal(encode(fused_after)[0][0][:, :77], plain[0][0][:, :77])
    assert not torch.equal(encode(fused_after)[0][0][:, 77:], plain[0][0][:, 77:])
    latent_before = sample(encode(fused_before), encode(fused_before, ""), model=model_before).samples
    latent_after = sample(encode(fused_after), encode(fused_after, ""), model=model_after).samples
    assert torch.equal(latent_after, latent_before)
    assert not torch.equal(latent_before, plain_latent)
    only_unet = sample(plain, encode(fused, ""), model=model_before).samples
    assert not torch.equal(only_unet, plain_latent), "the LoRA's UNet part changes nothing"

    assert identical(encode(fused), plain), "the LoRA is still in the original CLIP"
    latent_again = sample(plain, encode(fused, "")).samples
    assert torch.equal(latent_again, plain_latent), "the LoRA is still in the original model"


# Clip skip and textual inversion


@torch.inference_mode()
def test_clip_skip_before_or_after_llm4gen_clip_equals_cores_and_changes_the_llm_half(
    started, clip, fused, fuse, encode, llm_half, family
):
    def skip(clip):
        return started.core.CLIPSetLastLayer().set_last_layer(clip, OTHER_LAYER[family])[0]

    ((core, core_options),) = encode(skip(clip))
    ((states, options),) = encode(fuse(skip(clip)))
    assert identical(encode(skip(fused)), [[states, options]])
    assert torch.equal(states[:, :77], core)
    assert torch.equal(options["cross_attn_controlnet"], core)
    assert torch.equal(options["pooled_output"], core_options["pooled_output"])
    assert torch.equal(states[:, 77:], llm_half(core, SHORT))
    assert not torch.equal(core, encode(clip)[0][0])
    assert not torch.equal(states[:, 77:], encode(fused)[0][0][:, 77:])


@pytest.mark.parametrize(
    ("text", "llm_text"),
    [
        (f"a red cat embedding:{INVERSION} on a mat", SHORT),
        (f"a red cat (embedding:{INVERSION}:1.2) on a mat", SHORT),
        (f"embedding:{INVERSION}, a red cat on a mat", SHORT),
    ],
)
def test_a_textual_inversion_changes_clip_as_in_core_and_is_left_out_of_the_llms_text(
    text, llm_text, clip, fused, encode, llm, adapter, llm_half
):
    ids = [token for token, _ in fused.tokenize(text)["llm4gen"][0]]
    assert ids == list(llm.llm.tokenize(llm_text, adapter.recipe).ids)
    core, states = encode(clip, text)[0][0], encode(fused, text)[0][0]
    assert torch.equal(states[:, :77], core)
    assert not torch.equal(core, encode(clip, llm_text)[0][0])
    assert torch.equal(states[:, 77:], llm_half(core, llm_text))


# LLM4GEN CLIP works in every node that takes a CLIP


@torch.inference_mode()
def test_clones_of_llm4gen_clip_are_fused_too(started, model, fused, encode, load_lora, family):
    from comfy_extras.nodes_hooks import SetClipHooks  # noqa: PLC0415

    plain = encode(fused)
    hooks = hook_lora((1.0, 0.0))
    clones = {
        "clone": fused.clone(),
        "clone for hooks": fused.clone(disable_dynamic=True),
        "clip skip": started.core.CLIPSetLastLayer().set_last_layer(fused, LAYER[family])[0],
        "LoRA of strength 0": load_lora(model, fused, 0.0)[1],
        "LoRA": load_lora(model, fused, 1.0)[1],
        "hooks": SetClipHooks().apply_hooks(fused, False, True, hooks)[0],
        "twice": fused.clone().clone(),
    }
    lengths = {name: encode(clone)[0][0].shape[1] for name, clone in clones.items()}
    assert lengths == dict.fromkeys(clones, 333)
    unchanged = [name for name, clone in clones.items() if identical(encode(clone), plain)]
    assert unchanged == ["clone", "clone for hooks", "clip skip", "LoRA of strength 0", "twice"]


@torch.inference_mode()
def test_every_method_that_nodes_call_to_encode_gives_the_same_states(fused, encode):
    ((states, options),) = encode(fused)
    tokens = fused.tokenize(SHORT)
    assert torch.equal(fused.encode(SHORT), states)
    assert torch.equal(fused.encode_from_tokens(tokens), states)
    assert identical(fused.encode_from_tokens(tokens, return_pooled=True), (states, options["pooled_output"]))
    assert identical(
        fused.encode_from_tokens(tokens, return_pooled=True, return_dict=True), {"cond": states, **options}
    )
    assert identical(
        fused.encode_from_tokens_scheduled(tokens, add_dict={"guidance": 3.0}),
        [[states, {**options, "guidance": 3.0}]],
    )


@torch.inference_mode()
def test_tokens_with_word_ids_equal_cores_and_encode_to_the_same_states(clip, fused, encode):
    tokens = fused.tokenize(SHORT, return_word_ids=True)
    assert tokens["l"] == clip.tokenize(SHORT, return_word_ids=True)["l"]
    assert {len(entry) for chunks in tokens.values() for chunk in chunks for entry in chunk} == {3}
    assert torch.equal(fused.encode_from_tokens(tokens), encode(fused)[0][0])


@torch.inference_mode()
def test_tokens_of_clip_alone_encode_as_in_core(clip, fused, encode):
    tokens = clip.tokenize(SHORT)
    assert identical(fused.encode_from_tokens_scheduled(tokens), encode(clip))


@torch.inference_mode()
def test_clip_save_writes_the_same_files_as_for_the_plain_clip(clip, fused, tmp_path):
    from comfy_extras.nodes_model_merging import CLIPSave  # noqa: PLC0415

    def saved(clip, folder):
        folder.mkdir()
        node = CLIPSave()
        node.output_dir = str(folder)
        node.save(clip, "clip")
        return {file.name: load_file(file) for file in folder.iterdir()}

    files, plain = saved(fused, tmp_path / "fused"), saved(clip, tmp_path / "plain")
    assert files and files.keys() == plain.keys()
    assert all(untouched(files[name], plain[name]) for name in files)


# Hooks


def hook_lora(*keyframes):
    """Creates LoRA hooks with core's nodes: Create Hook LoRA, Set Hook Keyframes, and one Create Hook Keyframe for each
    (strength, start)."""
    from comfy_extras import nodes_hooks  # noqa: PLC0415

    (hooks,) = nodes_hooks.CreateHookLora().create_hook(LORA, 1.0, 1.0)
    frames = None
    for strength, start in keyframes:
        (frames,) = nodes_hooks.CreateHookKeyframe().create_hook_keyframe(strength, start, frames)
    return nodes_hooks.SetHookKeyframes().set_hook_keyframes(hooks, frames)[0]


KEYFRAMES = [(1.0, 0.0), (0.25, 0.4), (0.0, 0.8)]


@pytest.mark.parametrize("order", ["before", "after"])
@torch.inference_mode()
def test_each_segment_of_a_lora_schedule_equals_a_lora_of_that_strength(
    order, model, clip, fused, fuse, encode, load_lora, sample
):
    from comfy_extras.nodes_hooks import SetClipHooks  # noqa: PLC0415

    def hooked(clip):
        return SetClipHooks().apply_hooks(clip, True, True, hook_lora(*KEYFRAMES))[0]

    scheduled = encode(fuse(hooked(clip)) if order == "before" else hooked(fused))
    spans = [(o["clip_start_percent"], o["clip_end_percent"]) for _, o in scheduled]
    assert spans == [(0.0, 0.4), (0.4, 0.8), (0.8, 1.0)]
    for (states, options), (strength, _) in zip(scheduled, KEYFRAMES, strict=True):
        ((expected, expected_options),) = encode(fuse(load_lora(model, clip, strength)[1]))
        assert torch.equal(states, expected)
        assert options.keys() - expected_options.keys() == {"clip_start_percent", "clip_end_percent", "hooks"}
        assert identical({key: options[key] for key in expected_options}, expected_options)
    first, second, _ = (states for states, _ in scheduled)
    assert not torch.equal(first[:, 77:], second[:, 77:])
    core = encode(hooked(clip))
    assert identical([states[:, :77] for states, _ in scheduled], [states for states, _ in core])
    sample(scheduled, encode(fused, ""))
    assert identical(encode(fused), encode(fuse(clip))), "the hooks changed the original CLIP"


@torch.inference_mode()
def test_attention_weights_with_a_lora_schedule_are_those_of_its_first_segment(
    model, clip, fused, fuse, load_lora
):
    from comfy_extras.nodes_hooks import SetClipHooks  # noqa: PLC0415

    def attention(clip):
        return clip.attention_weights(clip.tokenize(SHORT))

    hooked = SetClipHooks().apply_hooks(fused, True, True, hook_lora(*KEYFRAMES))[0]
    assert torch.equal(attention(hooked), attention(fuse(load_lora(model, clip, KEYFRAMES[0][0])[1])))
    assert not torch.equal(attention(hooked), attention(fused))


# Core's nodes that change a conditioning


def mask_of_the_left_half():
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1.0
    return mask


# name: a function that makes one conditioning from two, with core's nodes.
TRANSFORMS = {
    "Combine": lambda core, one, two: core.ConditioningCombine().combine(one, two),
    "Concat": lambda core, one, two: core.ConditioningConcat().concat(one, two),
    "Average": lambda core, one, two: core.ConditioningAverage().addWeighted(one, two, 0.3),
    "SetArea": lambda core, one, two: core.ConditioningCombine().combine(
        core.ConditioningSetArea().append(one, 64, 64, 0, 0, 0.8)[0], two
    ),
    "SetAreaPercentage": lambda core, one, two: core.ConditioningCombine().combine(
        core.ConditioningSetAreaPercentage().append(one, 0.5, 1.0, 0.5, 0, 1.0)[0], two
    ),
    "SetMask": lambda core, one, two: core.ConditioningCombine().combine(
        core.ConditioningSetMask().append(one, mask_of_the_left_half(), "default", 0.7)[0], two
    ),
    "SetMask, mask bounds": lambda core, one, two: core.ConditioningSetMask().append(
        one, mask_of_the_left_half(), "mask bounds", 1.0
    ),
    "SetTimestepRange": lambda core, one, two: core.ConditioningCombine().combine(
        core.ConditioningSetTimestepRange().set_range(one, 0.0, 0.5)[0],
        core.ConditioningSetTimestepRange().set_range(two, 0.5, 1.0)[0],
    ),
    "ZeroOut": lambda core, one, two: core.ConditioningZeroOut().zero_out(one),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@torch.inference_mode()
def test_core_nodes_treat_our_conditioning_as_they_treat_clips(
    name, started, model, clip, fused, encode, sample, width
):
    def transformed(clip):
        return TRANSFORMS[name](started.core, encode(clip), encode(clip, "a dog"))[0]

    ours, cores = transformed(fused), transformed(clip)
    for (states, options), (core_states, core_options) in zip(ours, cores, strict=True):
        prompts = core_states.shape[1] // 77
        assert states.shape == (1, prompts * 333, width)
        assert torch.equal(states[:, :77], core_states[:, :77])
        assert torch.equal(states[:, (prompts - 1) * 333 :][:, :77], core_states[:, -77:])
        assert options.keys() == core_options.keys() | {"cross_attn_controlnet", "llm4gen_fused"}
        assert identical({key: options[key] for key in core_options}, core_options)
    latent = sample(ours, encode(fused, "")).samples
    assert not torch.equal(latent, sample(encode(fused), encode(fused, "")).samples)


@torch.inference_mode()
def test_core_nodes_change_the_llm_half_too(started, fused, encode):
    one, two = encode(fused), encode(fused, "a dog")

    def llm_half(name):
        return [states[:, -256:] for states, _ in TRANSFORMS[name](started.core, one, two)[0]]

    first, second = (conditioning[0][0][:, 77:] for conditioning in (one, two))
    assert identical(llm_half("Combine"), [first, second])
    assert identical(llm_half("Concat"), [second])
    assert identical(llm_half("Average"), [first * 0.3 + second * 0.7])
    assert identical(llm_half("ZeroOut"), [torch.zeros_like(first)])
