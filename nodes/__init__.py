"""The nodes, in menu order."""

from comfy_api.latest import ComfyExtension, io

from . import folders, routes
from .attention import AttentionMapNode
from .condition import ApplyToCLIP, LLM4GENConditioning
from .load import LoadCrossAdapter, LoadLLMEncoder


class LLM4GENExtension(ComfyExtension):
    async def on_load(self) -> None:
        folders.register()
        routes.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadLLMEncoder, LoadCrossAdapter, LLM4GENConditioning, ApplyToCLIP, AttentionMapNode]


async def comfy_entrypoint() -> LLM4GENExtension:
    return LLM4GENExtension()
