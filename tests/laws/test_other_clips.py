"""Over SD2, SDXL and its refiner the nodes keep the laws that they keep over SD1.5, with an adapter of that width."""

import importlib
import logging
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import in_process
import other_models
import tiny
from in_process import SHORT
from llm4gen.models.errors import WidthMismatch
from tiny import identical

INVERSION = "otherinversion"
CHUNKS = "chunks of 77"
LONG = "a red house by the sea, " * 20  # 160 CLIP tokens


@pytest.fixture(scope="module", params=other_models.KINDS)
def kind(request):
    return other_models.KINDS[request.param]


@pytest.fixture(scope="module")
def other_clip(kind, started, put):
    vectors = {"clip_g": torch.full((2, 1280), 0.1), "clip_l": torch.full((2, 768), 0.1)}
    put("embeddings", f"{INVERSION}.safetensors", vectors | {"clip_h": torch.full((2, 1024), 0.1)})
    with torch.inference_mode():
        return other_models.make_clip(kind, started.folders.get_folder_paths("embeddings"))


@pytest.fixture(scope="module")
def other_adapter(kind, started, put):
    name = f"width{kind.width}.safetensors"
    put("llm4gen", name, tiny.adapter_tensors(clip=kind.width, llm=2048))
    return in_process.run(started.ours["LLM4GEN_LoadCrossAdapter"], adapter_name=name)


@pytest.fixture(scope="module")
def run(started, llm, other_adapter):
    """One of our nodes, with the LLM and the adapter of this kind."""

    def run(node, **inputs):
        with torch.inference_mode():
            return in_process.run(started.ours[node], **{"llm": llm, "adapter": other_adapter} | inputs)

    return run


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        (SHORT, {}),
        ("a (blue:1.3) sheep, [brown] vase \\(tall\\)", {"controlnet_context": "fused"}),
        (f"a cat embedding:{INVERSION} on a mat", {"strength": 0.35}),
        (LONG, {}),
        (LONG, {"long_prompt": CHUNKS}),
    ],
)
def test_clips_tokens_are_cores_and_all_nodes_append_the_same_half(
    text, settings, kind, other_clip, run, encode
):
    clip = run("LLM4GEN_ApplyToCLIP", clip=other_clip, **settings)
    ((states, options),) = encode(clip, text)
    ((core, core_options),) = encode(other_clip, text)
    kept = core.shape[1] if "long_prompt" in settings else 77
    assert (text == LONG) == (core.shape[1] > 77)
    assert states.shape == (1, kept + 256, kind.width)
    if kept == core.shape[1]:
        assert torch.equal(states[:, :kept], core)
        assert torch.equal(options["pooled_output"], core_options["pooled_output"])
    assert ("cross_attn_controlnet" in options) == ("controlnet_context" not in settings)
    assert identical(run("LLM4GEN_Conditioning", clip=other_clip, text=text, **settings), [[states, options]])
    if "long_prompt" in settings or text != LONG:
        choices = {name: value for name, value in settings.items() if name != "long_prompt"}
        appended = run("LLM4GEN_FuseConditioning", conditioning=[[core, core_options]], text=text, **choices)
        assert identical(appended, [[states, options]])


def test_the_llm_half_is_the_adapters_of_clips_states(other_clip, other_adapter, llm, run, encode):
    states = run("LLM4GEN_Conditioning", clip=other_clip, text=SHORT)[0][0]
    ids = llm.llm.tokenize(SHORT, other_adapter.recipe).ids
    with torch.inference_mode():
        expected = other_adapter.fuse(encode(other_clip)[0][0], llm.features(ids, other_adapter.recipe))
    assert torch.equal(states[:, 77:], expected)


@pytest.mark.parametrize("text", [SHORT, LONG])
def test_strength_0_equals_core(text, other_clip, run, encode):
    clip = run("LLM4GEN_ApplyToCLIP", clip=other_clip, strength=0.0, long_prompt=CHUNKS)
    assert identical(encode(clip, text), encode(other_clip, text))


def test_what_is_cut_off_is_counted_once(other_clip, run, caplog):
    with caplog.at_level(logging.WARNING):
        run("LLM4GEN_Conditioning", clip=other_clip, text="cat " * 80)
    assert "CLIP half: the last 5 tokens" in caplog.text


def test_clip_skip_before_or_after_llm4gen_clip_gives_the_same(started, other_clip, run, encode):
    def skip(clip):
        return started.core.CLIPSetLastLayer().set_last_layer(clip, -1)[0]

    skipped = encode(run("LLM4GEN_ApplyToCLIP", clip=skip(other_clip)))
    assert identical(skipped, encode(skip(run("LLM4GEN_ApplyToCLIP", clip=other_clip))))
    assert torch.equal(skipped[0][0][:, :77], encode(skip(other_clip))[0][0])
    assert not torch.equal(skipped[0][0][:, :77], encode(other_clip)[0][0])


def test_the_attention_map_labels_its_words(other_clip, run):
    picture = run("LLM4GEN_Attention", clip=other_clip, text=SHORT)
    assert picture.ndim == 4 and picture.std() > 0


def test_both_prompts_are_sampled_in_one_call(kind, other_clip, run, encode, sample):
    model = other_models.make_model(kind)
    clip = run("LLM4GEN_ApplyToCLIP", clip=other_clip)
    fused = sample(encode(clip), encode(clip, ""), model=model)
    assert fused.calls == [(2, 333, kind.width)] * 2
    plain = sample(encode(other_clip), encode(other_clip, ""), model=model)
    assert not torch.equal(fused.samples, plain.samples)


def test_another_kinds_adapter_is_refused_with_both_widths(kind, other_clip, adapter, run):
    with pytest.raises(
        WidthMismatch, match=rf"{kind.width} wide, like .*{kind.name}.*; .* SD1.5's CLIP, 768 wide"
    ):
        run("LLM4GEN_Conditioning", clip=other_clip, adapter=adapter, text=SHORT)


def test_sd15s_clip_is_refused_by_another_kinds_adapter(kind, clip, run):
    with pytest.raises(
        WidthMismatch, match=rf"\(l\).* 768 wide, like .* SD1.5.*; .*{kind.name}.*, {kind.width} wide"
    ):
        run("LLM4GEN_Conditioning", clip=clip, text=SHORT)


KEYFRAMES = [(1.0, 0.0), (0.25, 0.5)]  # the strength of a LoRA, and from where on it holds


def test_each_segment_of_a_schedule_equals_a_lora_of_that_strength(
    started, kind, other_clip, run, encode, put
):
    from comfy_extras import nodes_hooks  # noqa: PLC0415

    name = f"lora{kind.width}.safetensors"
    put("loras", name, other_models.lora(other_clip))
    (hooks,) = nodes_hooks.CreateHookLora().create_hook(name, 1.0, 1.0)
    frames = None
    for strength, start in KEYFRAMES:
        (frames,) = nodes_hooks.CreateHookKeyframe().create_hook_keyframe(strength, start, frames)
    (hooks,) = nodes_hooks.SetHookKeyframes().set_hook_keyframes(hooks, frames)
    fused = run("LLM4GEN_ApplyToCLIP", clip=other_clip)
    scheduled = encode(nodes_hooks.SetClipHooks().apply_hooks(fused, True, True, hooks)[0])
    assert len(scheduled) == len(KEYFRAMES)
    for (states, options), (strength, _) in zip(scheduled, KEYFRAMES, strict=True):
        _, with_lora = started.core.LoraLoader().load_lora(None, other_clip, name, strength, strength)
        ((expected, expected_options),) = encode(run("LLM4GEN_ApplyToCLIP", clip=with_lora))
        assert torch.equal(states, expected)
        assert identical({name: options[name] for name in expected_options}, expected_options)
    assert not torch.equal(scheduled[0][0][:, 77:], scheduled[1][0][:, 77:])
    assert not torch.equal(scheduled[0][1]["pooled_output"], encode(fused)[0][1]["pooled_output"])


only = partial(pytest.mark.parametrize, "kind", indirect=True, scope="module")


@only(["SDXL"])
@pytest.mark.parametrize(("text_g", "text_l"), [(SHORT, "a dog"), (LONG, "a dog"), (SHORT, LONG)])
def test_in_sdxls_own_node_the_llm_reads_the_text_for_clip_g(text_g, text_l, other_clip, run):
    from comfy_extras.nodes_clip_sdxl import CLIPTextEncodeSDXL  # noqa: PLC0415

    inputs = dict.fromkeys(("width", "target_width"), 832) | dict.fromkeys(("height", "target_height"), 1216)
    inputs |= {"crop_w": 8, "crop_h": 16, "text_g": text_g, "text_l": text_l}
    check_own_node(CLIPTextEncodeSDXL, inputs, text_g, other_clip, run)


@only(["SDXL"])
@pytest.mark.parametrize("parts", ["l", "h"])
def test_sdxls_own_node_refuses_another_clip_with_both_widths(parts, kind, clip, started, run):
    from comfy_extras.nodes_clip_sdxl import CLIPTextEncodeSDXL  # noqa: PLC0415

    other = clip if parts == "l" else other_models.make_clip(other_models.KINDS["SD2"], [])
    sizes = dict.fromkeys(("width", "height", "crop_w", "crop_h", "target_width", "target_height"), 64)
    fused = run("LLM4GEN_ApplyToCLIP", clip=other)
    with pytest.raises(
        WidthMismatch,
        match=rf"\({parts}\) .* (768|1024) wide, .*; .*SDXL.*, 2048 wide.*context_width (768|1024)\.",
    ):
        CLIPTextEncodeSDXL.execute(clip=fused, text_g=SHORT, text_l=SHORT, **sizes)


@only(["SDXL refiner"])
def test_the_refiners_own_node_keeps_its_score_and_sizes(other_clip, run):
    from comfy_extras.nodes_clip_sdxl import CLIPTextEncodeSDXLRefiner  # noqa: PLC0415

    inputs = {"ascore": 2.5, "width": 832, "height": 1216, "text": SHORT}
    check_own_node(CLIPTextEncodeSDXLRefiner, inputs, SHORT, other_clip, run)


def check_own_node(node, inputs, llm_text, clip, run):
    """Checks that a node of core's for SDXL keeps its tokens and options on LLM4GEN CLIP, and what the LLM reads."""
    with torch.inference_mode():
        (core,) = node.execute(clip=clip, **inputs).args
        fused = run("LLM4GEN_ApplyToCLIP", clip=clip, long_prompt=CHUNKS)
        (((states, options),),) = node.execute(clip=fused, **inputs).args
    ((core_states, core_options),) = core
    assert torch.equal(states[:, : core_states.shape[1]], core_states)
    assert identical({name: options[name] for name in core_options}, core_options)
    appended = run("LLM4GEN_FuseConditioning", conditioning=core, text=llm_text)
    assert identical(appended, [[states, options]])


@only(["SD2", "SDXL"])
def test_comfyui_recognises_the_tests_own_model_as_of_that_kind(kind, started):
    from comfy.model_detection import model_config_from_unet  # noqa: PLC0415

    unet = other_models.make_model(kind).model.diffusion_model
    assert type(model_config_from_unet(unet.state_dict(), "")).__name__ == kind.family


@only(["SDXL refiner"])
@pytest.mark.parametrize(
    ("module", "family", "options", "parts"),
    [
        ("comfy.sdxl_clip", "StableCascade", {}, "g"),
        ("comfy.text_encoders.sd3_clip", "SD3", {"t5": False}, "g + l + t5xxl"),
    ],
)
def test_the_clips_of_other_models_are_refused(module, family, options, parts, started, run):
    found = importlib.import_module(module)
    model, tokenizer = getattr(found, f"{family}ClipModel"), getattr(found, f"{family}Tokenizer")
    clip = other_models.clip_of(SimpleNamespace(clip=model, tokenizer=tokenizer, params=options))
    with pytest.raises(
        WidthMismatch, match=rf"\({re.escape(parts)}\) is not that of .* the SDXL refiner's CLIP, 1280"
    ):
        run("LLM4GEN_Conditioning", clip=clip, text=SHORT)
