"""The two loaders: weights in the host's model folders → models under the host's memory management."""

from __future__ import annotations

from comfy_api.latest import io

from ..models.checkpoint import load_cross_adapter
from ..models.llm import LLM
from ..models.source import open_source
from ..models.widths import DTYPES
from . import folders, host, sockets
from .hosted import HostedAdapter, HostedLLM
from .tokenizers import tokenizer_of


class LoadLLMEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GEN_LoadLLMEncoder",
            display_name="Load LLM Encoder",
            category="LLM4GEN",
            description="Loads the language model that reads the prompt beside CLIP: the encoder of RankGen, "
            "T5 v1.1 or flan-T5, from models/text_encoders.",
            search_aliases=["T5", "RankGen", "LLM4GEN", "ELLA", "text encoder"],
            inputs=[
                io.Combo.Input(
                    "encoder_name",
                    options=folders.choices(folders.ENCODERS),
                    tooltip="A weights file, a folder with a config.json, or a .gguf file (which needs the Python "
                    "package gguf), in models/text_encoders. "
                    "The published adapter needs rankgen-t5-xl-all.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=["auto", *DTYPES],
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="How the weights are kept in memory. auto: as in the file, computed the fastest way "
                    "that stays within 2% of fp32 on a CPU and 0.5% on a GPU. fp32: exact. A .gguf file's weights stay "
                    "quantised, and are expanded layer by layer; fp32 then means exact products with them.",
                ),
                io.Combo.Input(
                    "device",
                    options=list(host.DEVICES),
                    default="default",
                    optional=True,
                    advanced=True,
                    tooltip="default: where ComfyUI runs text encoders. cpu: leaves the GPU to the picture.",
                ),
            ],
            outputs=[sockets.LLM.Output(tooltip="For LLM4GEN Conditioning and LLM4GEN CLIP.")],
        )

    @classmethod
    def validate_inputs(cls, encoder_name) -> bool:
        return True  # a name that is not listed gets MissingFile's advice instead of "value not in list"

    @classmethod
    def fingerprint_inputs(cls, encoder_name, dtype="auto", device="default") -> str:
        return folders.fingerprint(folders.ENCODERS, encoder_name)

    @classmethod
    def execute(cls, encoder_name, dtype="auto", device="default") -> io.NodeOutput:
        source = open_source(folders.resolve(folders.ENCODERS, encoder_name))
        return io.NodeOutput(HostedLLM(LLM(source, tokenizer_of(source)), dtype, device))


class LoadCrossAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GEN_LoadCrossAdapter",
            display_name="Load Cross-Adapter",
            category="LLM4GEN",
            description="Loads the small module that lets the LLM's tokens look at CLIP's (LLM4GEN's "
            "projector.pth), from models/llm4gen.",
            search_aliases=["LLM4GEN", "projector", "ELLA"],
            inputs=[
                io.Combo.Input(
                    "adapter_name",
                    options=folders.choices(folders.ADAPTERS),
                    tooltip="A file in models/llm4gen: projector.pth, as published, or a .safetensors.",
                ),
            ],
            outputs=[sockets.ADAPTER.Output(tooltip="For LLM4GEN Conditioning and LLM4GEN CLIP.")],
        )

    @classmethod
    def validate_inputs(cls, adapter_name) -> bool:
        return True  # a name that is not listed gets MissingFile's advice instead of "value not in list"

    @classmethod
    def fingerprint_inputs(cls, adapter_name) -> str:
        return folders.fingerprint(folders.ADAPTERS, adapter_name)

    @classmethod
    def execute(cls, adapter_name) -> io.NodeOutput:
        path = folders.resolve(folders.ADAPTERS, adapter_name)
        return io.NodeOutput(HostedAdapter(*load_cross_adapter(path, operations=host.LAYERS)))
