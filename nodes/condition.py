"""Words → conditioning."""

from __future__ import annotations

from comfy_api.latest import io

from . import sockets
from .fusion import CHUNKS, CUT, encode


class LLM4GENConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GEN_Conditioning",
            display_name="LLM4GEN Conditioning",
            category="LLM4GEN",
            description="Encodes a prompt with CLIP and an LLM, fused by the Cross-Adapter, for any SD1.5 model. "
            "Use it in place of CLIP Text Encode, for the positive and the negative prompt alike.",
            search_aliases=["LLM4GEN", "CLIP Text Encode", "LLM prompt", "T5 prompt"],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of an SD1.5 checkpoint, with or without LoRA."),
                sockets.LLM.Input("llm", tooltip="From Load LLM Encoder."),
                sockets.ADAPTER.Input("adapter", tooltip="From Load Cross-Adapter."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt. (word:1.2) and embedding:name act on CLIP; the LLM reads the words alone.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    optional=True,
                    tooltip="Weight of the LLM half (the paper's balance factor). 1: as published. 0: CLIP alone.",
                ),
                io.String.Input(
                    "llm_text",
                    optional=True,
                    force_input=True,
                    tooltip="Other words for the LLM, such as a sentence where CLIP gets tags. Unconnected: the "
                    "same text.",
                ),
                io.Combo.Input(
                    "long_prompt",
                    options=[CUT, CHUNKS],
                    default=CUT,
                    optional=True,
                    tooltip="CLIP's share of a prompt over 77 tokens. Cut: positive and negative stay equally "
                    "long and are sampled in one pass. Chunks: nothing is lost, but prompts of unequal length "
                    "take two passes a step.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="For KSampler and all that takes a CONDITIONING.")],
        )

    @classmethod
    def execute(cls, clip, llm, adapter, text, strength=1.0, llm_text=None, long_prompt=CUT) -> io.NodeOutput:
        return io.NodeOutput(
            encode(clip, llm, adapter, text, llm_text=llm_text, strength=strength, long_prompt=long_prompt)
        )
