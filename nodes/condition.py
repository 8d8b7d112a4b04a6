"""The nodes that fuse: LLM4GEN Conditioning, LLM4GEN CLIP and LLM4GEN Fuse Conditioning."""

from __future__ import annotations

from comfy_api.latest import io

from . import sockets
from .fused_clip import FusedCLIP
from .fusion import CHUNKS, CLIP_CONTEXT, CUT, FUSED_CONTEXT, Fusion, check_is_from_clip


def model_inputs() -> list[io.Input]:
    """The inputs for the models to fuse."""
    return [
        io.Clip.Input(
            "clip",
            tooltip="The CLIP of a checkpoint of the adapter's kind (SD1.5 for the published one), with or without "
            "LoRA.",
        ),
        *llm_inputs(),
    ]


def llm_inputs() -> list[io.Input]:
    """The inputs for this pack's own models."""
    return [
        sockets.LLM.Input("llm", tooltip="From Load LLM Encoder."),
        sockets.ADAPTER.Input("adapter", tooltip="From Load Cross-Adapter."),
    ]


def text_input() -> io.Input:
    return io.String.Input(
        "text",
        multiline=True,
        dynamic_prompts=True,
        tooltip="The prompt. (word:1.2) gives a weight to both halves; embedding:name acts on CLIP alone.",
    )


def strength_input() -> io.Input:
    return io.Float.Input(
        "strength",
        default=1.0,
        min=0.0,
        max=2.0,
        step=0.05,
        optional=True,
        tooltip="Weight of the LLM's half (the paper's balance factor). 1: as published. 0: CLIP alone.",
    )


def context_inputs() -> list[io.Input]:
    """The inputs that decide which tokens the UNet and ControlNets get."""
    return [
        io.Combo.Input(
            "long_prompt",
            options=[CUT, CHUNKS],
            default=CUT,
            optional=True,
            tooltip="What CLIP does with a prompt of more than 77 tokens. Cut: positive and negative stay equally long "
            "and are sampled in one pass. Chunks: nothing is lost, but prompts of unequal length take two passes a "
            "step.",
        ),
        controlnet_input(),
    ]


def controlnet_input() -> io.Input:
    return io.Combo.Input(
        "controlnet_context",
        options=[CLIP_CONTEXT, FUSED_CONTEXT],
        default=CLIP_CONTEXT,
        optional=True,
        advanced=True,
        tooltip="What ControlNets read. clip: CLIP's tokens alone, as they were trained. fused: all tokens.",
    )


class LLM4GENConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GEN_Conditioning",
            display_name="LLM4GEN Conditioning",
            category="LLM4GEN",
            description="Encodes a prompt with CLIP and an LLM, fused by the Cross-Adapter, for any model of the kind "
            "that the adapter was trained for: SD1.5 (the published one), SD2 or SDXL. Use it in place of CLIP Text "
            "Encode, for the positive and the negative prompt alike.",
            search_aliases=["LLM4GEN", "CLIP Text Encode", "LLM prompt", "T5 prompt", "ELLA"],
            inputs=[
                *model_inputs(),
                text_input(),
                strength_input(),
                io.String.Input(
                    "llm_text",
                    optional=True,
                    force_input=True,
                    tooltip="Another text for the LLM, such as a sentence where CLIP gets tags. If nothing is "
                    "connected, the LLM reads the same text.",
                ),
                *context_inputs(),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="Connect it to KSampler, or wherever a CONDITIONING goes.")
            ],
        )

    @classmethod
    def execute(cls, clip, llm, adapter, text, llm_text=None, **settings) -> io.NodeOutput:
        fused = FusedCLIP.around(clip, Fusion(llm, adapter, **settings))
        return io.NodeOutput(fused.encode_from_tokens_scheduled(fused.tokenize(text, llm_text=llm_text)))


class ApplyToCLIP(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GEN_ApplyToCLIP",
            display_name="LLM4GEN CLIP",
            category="LLM4GEN",
            description="Turns the CLIP of a checkpoint of the adapter's kind (SD1.5, SD2 or SDXL) into one that is "
            "fused with an LLM, for other nodes that take a CLIP: CLIP Text Encode, Load LoRA, clip skip, hooks, "
            "prompt schedulers. Where SDXL's node has two texts, the LLM reads text_g.",
            search_aliases=["LLM4GEN", "LLM prompt", "T5 prompt", "ELLA", "fused CLIP"],
            inputs=[*model_inputs(), strength_input(), *context_inputs()],
            outputs=[io.Clip.Output(tooltip="Connect it to CLIP Text Encode, or wherever a CLIP goes.")],
        )

    @classmethod
    def execute(cls, clip, llm, adapter, **settings) -> io.NodeOutput:
        return io.NodeOutput(FusedCLIP.around(clip.clone(), Fusion(llm, adapter, **settings)))


class FuseConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GEN_FuseConditioning",
            display_name="LLM4GEN Fuse Conditioning",
            category="LLM4GEN",
            description="Appends the LLM's half to a conditioning that another node made with the CLIP of a "
            "checkpoint of the adapter's kind (SD1.5, SD2 or SDXL). Use it where a node of another pack encodes the "
            "prompt in its own way.",
            search_aliases=["LLM4GEN", "LLM prompt", "T5 prompt", "ELLA", "fuse conditioning"],
            inputs=[
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="From a node that encodes the prompt with the checkpoint's own CLIP. Each of its entries "
                    "gets the LLM's half of the text.",
                ),
                *llm_inputs(),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The text for the LLM, usually the same prompt. (word:1.2) gives a weight to the LLM's "
                    "half.",
                ),
                strength_input(),
                controlnet_input(),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="Connect it to KSampler, or wherever a CONDITIONING goes.")
            ],
        )

    @classmethod
    def execute(cls, conditioning, llm, adapter, text, **settings) -> io.NodeOutput:
        fusion = Fusion(llm, adapter, **settings)
        for states, options in conditioning:
            fusion.check_fit(states.shape[-1], "The node that made this conditioning")
            check_is_from_clip(states, options)
        if fusion.strength == 0:
            return io.NodeOutput(conditioning)
        return io.NodeOutput(fusion.fuse(conditioning, [fusion.tokenize(text)]))
