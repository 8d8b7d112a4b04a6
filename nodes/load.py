"""The two loader nodes: a file in ComfyUI's model folders → a model under ComfyUI's memory management."""

from __future__ import annotations

import logging

from comfy_api.latest import io

from ..models.checkpoints.adapter import (
    WITH_LORA,
    WITH_PATCHES,
    WITH_UNET,
    load_cross_adapter,
    read_training,
    trained_with,
)
from ..models.files.formats import DTYPE_NAMES
from ..models.llm import LLM, open_llm
from . import folders, host, sockets
from .managed import ManagedAdapter, ManagedLLM
from .tokenizers import tokenizer_of

log = logging.getLogger(__name__)

# What an adapter was trained with → a line in the log. web/texts.js has it for the page.
NEEDS = {
    WITH_UNET: "%s was trained together with the whole UNet. Use that UNet, or pictures come out wrong.",
    WITH_LORA: "%s was trained together with a LoRA of the UNet. Load that LoRA too, or pictures come out wrong.",
    WITH_PATCHES: "%s was trained on a UNet with a LoRA or a merge. Use the same, or pictures come out wrong.",
}


class LoadLLMEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GEN_LoadLLMEncoder",
            display_name="Load LLM Encoder",
            category="LLM4GEN",
            description="Loads the language model that reads the prompt next to CLIP: the encoder of RankGen, T5 v1.1 "
            "or flan-T5, or an LLM such as Llama, Qwen or Gemma, from models/text_encoders.",
            search_aliases=["T5", "RankGen", "LLM4GEN", "ELLA", "text encoder"],
            inputs=[
                io.Combo.Input(
                    "encoder_name",
                    options=folders.choices(folders.ENCODERS),
                    tooltip="A weight file, a folder with a config.json, or a .gguf file (which needs the Python "
                    "package gguf), in models/text_encoders. The published adapter needs rankgen-t5-xl-all.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=["auto", *DTYPE_NAMES],
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="The dtype of the weights in memory. auto: the file's dtype (an fp32 file becomes fp16 on "
                    "a GPU), computed in the fastest way that stays within 2% of fp32 on a CPU and 0.5% on a GPU. "
                    "fp32: exact. The weights of a .gguf file stay quantised and are dequantised layer by layer; "
                    "fp32 then means exact products with them.",
                ),
                io.Combo.Input(
                    "device",
                    options=host.device_options(),
                    default="default",
                    optional=True,
                    advanced=True,
                    tooltip="default: where ComfyUI runs text encoders. cpu: leaves the GPU to the "
                    "picture. gpu:0, gpu:1 and so on: one of several GPUs.",
                ),
            ],
            outputs=[sockets.LLM.Output(tooltip="Connect it to LLM4GEN Conditioning or LLM4GEN CLIP.")],
        )

    @classmethod
    def validate_inputs(cls, encoder_name, device="default") -> bool:
        return True  # so that what is missing gets the advice of our errors instead of "value not in list"

    @classmethod
    def fingerprint_inputs(cls, encoder_name, dtype="auto", device="default") -> str:
        return folders.fingerprint(folders.ENCODERS, encoder_name)

    @classmethod
    def execute(cls, encoder_name, dtype="auto", device="default") -> io.NodeOutput:
        host.load_device_of(device)  # so that a card that is missing is named before anything is read
        file = open_llm(folders.resolve(folders.ENCODERS, encoder_name))
        return io.NodeOutput(ManagedLLM(LLM(file, tokenizer_of(file)), dtype, device))


class LoadCrossAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GEN_LoadCrossAdapter",
            display_name="Load Cross-Adapter",
            category="LLM4GEN",
            description="Loads the Cross-Adapter, the small module that fuses the LLM's tokens with CLIP's (LLM4GEN's "
            "projector.pth), from models/llm4gen.",
            search_aliases=["LLM4GEN", "projector", "ELLA"],
            inputs=[
                io.Combo.Input(
                    "adapter_name",
                    options=folders.choices(folders.ADAPTERS),
                    tooltip="A file in models/llm4gen: the published projector.pth, or a .safetensors.",
                ),
            ],
            outputs=[sockets.ADAPTER.Output(tooltip="Connect it to LLM4GEN Conditioning or LLM4GEN CLIP.")],
        )

    @classmethod
    def validate_inputs(cls, adapter_name) -> bool:
        return True  # so that an unknown name gets the advice of MissingFile instead of "value not in list"

    @classmethod
    def fingerprint_inputs(cls, adapter_name) -> str:
        return folders.fingerprint(folders.ADAPTERS, adapter_name)

    @classmethod
    def execute(cls, adapter_name) -> io.NodeOutput:
        path = folders.resolve(folders.ADAPTERS, adapter_name)
        adapter, recipe = load_cross_adapter(path, operations=host.LAYERS, mapped=host.may_map_files())
        training = read_training(path)
        needed = trained_with(training)
        if needed:
            log.info(NEEDS[needed], adapter_name)
        return io.NodeOutput(ManagedAdapter(adapter, recipe, training=training))
