"""LLM4GEN as a CLIP for every node that takes one, and the shortest way from words to conditioning."""

from __future__ import annotations

from comfy_api.latest import io

from . import sockets
from .fused_clip import CHUNKS, CLIP_CONTEXT, CUT, FUSED_CONTEXT, FusedCLIP, Fusion


def models() -> list[io.Input]:
    """What is fused."""
    return [
        io.Clip.Input("clip", tooltip="The CLIP of an SD1.5 checkpoint, with or without LoRA."),
        sockets.LLM.Input("llm", tooltip="From Load LLM Encoder."),
        sockets.ADAPTER.Input("adapter", tooltip="From Load Cross-Adapter."),
    ]


def prompt() -> io.Input:
    return io.String.Input(
        "text",
        multiline=True,
        dynamic_prompts=True,
        tooltip="The prompt. (word:1.2) weighs both halves; embedding:name acts on CLIP alone.",
    )


def strength() -> io.Input:
    return io.Float.Input(
        "strength",
        default=1.0,
        min=0.0,
        max=2.0,
        step=0.05,
        optional=True,
        tooltip="Weight of the LLM half (the paper's balance factor). 1: as published. 0: CLIP alone.",
    )


def contexts() -> list[io.Input]:
    """Who sees which tokens."""
    return [
        io.Combo.Input(
            "long_prompt",
            options=[CUT, CHUNKS],
            default=CUT,
            optional=True,
            tooltip="CLIP's share of a prompt over 77 tokens. Cut: positive and negative stay equally "
            "long and are sampled in one pass. Chunks: nothing is lost, but prompts of unequal length "
            "take two passes a step.",
        ),
        io.Combo.Input(
            "controlnet_context",
            options=[CLIP_CONTEXT, FUSED_CONTEXT],
            default=CLIP_CONTEXT,
            optional=True,
            advanced=True,
            tooltip="What ControlNets read. clip: CLIP's tokens alone, as they were trained. fused: all tokens.",
        ),
    ]


class LLM4GENConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GEN_Conditioning",
            display_name="LLM4GEN Conditioning",
            category="LLM4GEN",
            description="Encodes a prompt with CLIP and an LLM, fused by the Cross-Adapter, for any SD1.5 model. "
            "Use it in place of CLIP Text Encode, for the positive and the negative prompt alike.",
            search_aliases=["LLM4GEN", "CLIP Text Encode", "LLM prompt", "T5 prompt", "ELLA"],
            inputs=[
                *models(),
                prompt(),
                strength(),
                io.String.Input(
                    "llm_text",
                    optional=True,
                    force_input=True,
                    tooltip="Other words for the LLM, such as a sentence where CLIP gets tags. Unconnected: the "
                    "same text.",
                ),
                *contexts(),
            ],
            outputs=[io.Conditioning.Output(tooltip="For KSampler and all that takes a CONDITIONING.")],
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
            description="Turns the CLIP of an SD1.5 checkpoint into one that is fused with an LLM, for every node "
            "that takes a CLIP: CLIP Text Encode, Load LoRA, clip skip, hooks, prompt schedulers.",
            search_aliases=["LLM4GEN", "LLM prompt", "T5 prompt", "ELLA", "fused CLIP"],
            inputs=[*models(), strength(), *contexts()],
            outputs=[io.Clip.Output(tooltip="For CLIP Text Encode and all that takes a CLIP.")],
        )

    @classmethod
    def execute(cls, clip, llm, adapter, **settings) -> io.NodeOutput:
        return io.NodeOutput(FusedCLIP.around(clip.clone(), Fusion(llm, adapter, **settings)))
