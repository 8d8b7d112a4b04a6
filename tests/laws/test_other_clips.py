"""Over SD2, SDXL and its refiner the nodes keep the laws that they keep over SD1.5, with an adapter of that width."""

import logging

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
    with pytest.raises(WidthMismatch, match=rf"{kind.width} wide; .* SD1.5's CLIP, 768 wide"):
        run("LLM4GEN_Conditioning", clip=other_clip, adapter=adapter, text=SHORT)


def test_sd15s_clip_is_refused_by_another_kinds_adapter(kind, clip, run):
    with pytest.raises(WidthMismatch, match=rf"\(l\).* 768 wide; .*, {kind.width} wide"):
        run("LLM4GEN_Conditioning", clip=clip, text=SHORT)


@pytest.mark.parametrize("kind", ["SDXL"], indirect=True, scope="module")
def test_the_two_texts_and_the_sizes_of_sdxls_own_node_are_kept(other_clip, run):
    from comfy_extras.nodes_clip_sdxl import CLIPTextEncodeSDXL  # noqa: PLC0415

    sizes = {
        "width": 832,
        "height": 1216,
        "crop_w": 8,
        "crop_h": 16,
        "target_width": 832,
        "target_height": 1216,
    }

    def encode(clip):
        with torch.inference_mode():
            (conditioning,) = CLIPTextEncodeSDXL.execute(clip, **sizes, text_g=SHORT, text_l="a dog").args
        return conditioning

    ((core, core_options),) = encode(other_clip)
    ((states, options),) = encode(run("LLM4GEN_ApplyToCLIP", clip=other_clip))
    assert torch.equal(states[:, :77], core)
    assert identical({name: options[name] for name in core_options}, core_options)
    appended = run("LLM4GEN_FuseConditioning", conditioning=[[core, core_options]], text=SHORT)
    assert identical(appended, [[states, options]]), "the LLM reads the text for CLIP-G"
