"""ComfyUI's entry point: the nodes in the order of the menu."""

from comfy_api.latest import ComfyExtension, io

from . import folders
from .attention import AttentionMapNode
from .condition import ApplyToCLIP, FuseConditioning, LLM4GENConditioning
from .load import LoadCrossAdapter, LoadLLMEncoder
from .pages import routes
from .train import NewCrossAdapter, SaveCrossAdapter, TrainCrossAdapter, TrainingSetNode


class LLM4GENExtension(ComfyExtension):
    async def on_load(self) -> None:
        folders.register()
        routes.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LoadLLMEncoder,
            LoadCrossAdapter,
            LLM4GENConditioning,
            ApplyToCLIP,
            FuseConditioning,
            AttentionMapNode,
            NewCrossAdapter,
            TrainingSetNode,
            TrainCrossAdapter,
            SaveCrossAdapter,
        ]


async def comfy_entrypoint() -> LLM4GENExtension:
    return LLM4GENExtension()
