"""Prompts for ComfyUI's server that end in a fused conditioning."""

from sandbox.standins import CHECKPOINT


def fusing_graph(loader, adapter, text, *, runs_clip=True):
    """Node 4 fuses, and node 5 shows the conditioning.

    loader:    inputs of Load LLM Encoder.
    runs_clip: whether CLIP encodes this text, which takes most of the time of a small LLM's prompt. Otherwise LLM4GEN
               Fuse Conditioning fuses CLIP's conditioning of another text, which ComfyUI has in its cache.
    """
    models = {"llm": ["2", 0], "adapter": ["3", 0]}
    by_clip = {"class_type": "LLM4GEN_Conditioning", "inputs": {"clip": ["1", 1], "text": text, **models}}
    by_cache = {
        "class_type": "LLM4GEN_FuseConditioning",
        "inputs": {"conditioning": ["6", 0], "text": text, **models},
    }
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}},
        "2": {"class_type": "LLM4GEN_LoadLLMEncoder", "inputs": loader},
        "3": {"class_type": "LLM4GEN_LoadCrossAdapter", "inputs": {"adapter_name": adapter}},
        "4": by_clip if runs_clip else by_cache,
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["4", 0]}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a picture"}},
        "7": {
            "class_type": "PreviewAny",
            "inputs": {"source": ["6", 0]},
        },  # ComfyUI forgets what no prompt uses
    }
