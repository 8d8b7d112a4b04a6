"""LLM4GEN for ComfyUI: where the host finds the nodes and the pages."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
