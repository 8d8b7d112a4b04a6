"""Training for SDXL through ComfyUI's server: from files that its own loaders read to a changed picture."""

import json
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import other_models
from sandbox.client import Client, image_paths
from sandbox.model_choice import make_standins
from sandbox.server import Server
from sandbox.standin_models import clip_shapes, fan_in
from sandbox.standins import CHECKPOINT, ENCODER

WIDTH, LAYERS = 1280, 32  # of CLIP-G, which ComfyUI builds in full size whatever a file holds


@pytest.fixture(scope="module")
def sdxl_server(started, host, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdxl")
    for name in ("diffusion_models", "text_encoders"):
        (folder / name).mkdir()
    unet = other_models.make_model(other_models.KINDS["SDXL"]).model.diffusion_model.state_dict()
    save_file(dict(unet), folder / "diffusion_models" / "vega.safetensors")
    torch.manual_seed(0)
    clip_l = {name: torch.randn(shape) * fan_in(shape) ** -0.5 for name, shape in clip_shapes().items()}
    save_file(clip_l, folder / "text_encoders" / "l.safetensors")
    write_clip_g(folder / "text_encoders" / "g.safetensors")
    with Server(host, tmp_path_factory.mktemp("sdxl-server"), [make_standins(host), folder]) as server:
        yield server
    for file in folder.rglob("*.safetensors"):
        file.unlink()


def write_clip_g(path):
    """A CLIP-G of full size in fp16, whose layers pass their input on. Their zeros are a hole in the file.

    So the file takes 130 MB of the disk and not 1.4 GB.
    """
    parts = {"layer_norm1": (WIDTH,), "layer_norm2": (WIDTH,)}
    parts |= {f"self_attn.{name}_proj": (WIDTH, WIDTH) for name in ("q", "k", "v", "out")}
    parts |= {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}
    zeros = {
        f"text_model.encoder.layers.{layer}.{name}.{kind}": shape if kind == "weight" else shape[:1]
        for layer in range(LAYERS)
        for name, shape in parts.items()
        for kind in ("weight", "bias")
    }
    values = {
        "text_model.embeddings.token_embedding.weight": torch.randn(49408, WIDTH),
        "text_model.embeddings.position_embedding.weight": torch.randn(77, WIDTH) * 0.5,
        "text_model.final_layer_norm.weight": torch.ones(WIDTH),
        "text_model.final_layer_norm.bias": torch.zeros(WIDTH),
        "text_projection.weight": torch.randn(WIDTH, WIDTH) * WIDTH**-0.5,
    }
    header, end = {}, 0
    for name, shape in [*((name, tuple(value.shape)) for name, value in values.items()), *zeros.items()]:
        start, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    described = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(described)) + described)
        for value in values.values():
            file.write(value.half().numpy().tobytes())
        file.truncate(8 + len(described) + end)


def graph():
    """Trains on an empty latent, and draws with the new adapter (21), the trained one (22), and its LoRA too (23)."""
    recipe = {"template": "{text}", "system": "", "tokens": 12, "padding": "keep", "layer": -1}
    text = "a red cat on a blue mat"
    drops = {"drop_text": 0.0, "drop_llm": 0.0, "drop_clip": 0.0}
    job = {"steps": 2, "batch_size": 1, "accumulate": 1, "learning_rate": 1e-2, "unet": "LoRA", "rank": 4}
    job |= {**drops, "min_snr": 5.0, "quiet_start": 0, "seed": 0, "precision": "fp32", "save_every": 0}
    job |= {"gradient_checkpointing": False, "resume": False, "preview_every": 0}
    nodes = {
        "1": ("UNETLoader", {"unet_name": "vega.safetensors", "weight_dtype": "default"}),
        "2": (
            "DualCLIPLoader",
            {"clip_name1": "l.safetensors", "clip_name2": "g.safetensors", "type": "sdxl"},
        ),
        "3": ("LLM4GEN_LoadLLMEncoder", {"encoder_name": ENCODER}),
        "4": (
            "LLM4GEN_NewCrossAdapter",
            {"llm": ["3", 0], **recipe, "heads": 8, "mlp_dim": 64, "seed": 0, "context_width": 2048},
        ),
        "5": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "6": ("PrimitiveString", {"value": text}),
        "7": (
            "LLM4GEN_TrainingSet",
            {"texts": ["6", 0], "clip": ["2", 0], "llm": ["3", 0], "adapter": ["4", 0], "latents": ["5", 0]},
        ),
        "8": (
            "LLM4GEN_TrainCrossAdapter",
            {"model": ["1", 0], "training_set": ["7", 0], "adapter": ["4", 0], **job},
        ),
        "9": ("CheckpointLoaderSimple", {"ckpt_name": CHECKPOINT}),  # for its VAE
    }
    for number, adapter, model in (
        (21, ["4", 0], ["1", 0]),
        (22, ["8", 0], ["1", 0]),
        (23, ["8", 0], ["8", 2]),
    ):
        fused = {"clip": ["2", 0], "llm": ["3", 0], "adapter": adapter}
        nodes[f"{number}c"] = ("LLM4GEN_Conditioning", {**fused, "text": text})
        # At 1, guidance reads the positive side alone. Each text costs CLIP-G seconds here.
        sampling = {"steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
        sides = {"positive": [f"{number}c", 0], "negative": [f"{number}c", 0]}
        nodes[f"{number}s"] = (
            "KSampler",
            {"model": model, **sides, "latent_image": ["5", 0], "seed": 1, **sampling},
        )
        nodes[f"{number}d"] = ("VAEDecode", {"samples": [f"{number}s", 0], "vae": ["9", 2]})
        nodes[str(number)] = ("SaveImage", {"images": [f"{number}d", 0], "filename_prefix": f"sdxl_{number}"})
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def test_a_few_steps_change_what_sdxl_draws(sdxl_server):
    outputs = Client(sdxl_server.url).run(graph())
    pictures = []
    for node in ("21", "22", "23"):
        (path,) = image_paths({node: outputs[node]}, sdxl_server.output)
        with Image.open(path) as picture:
            pictures.append(np.asarray(picture.convert("RGB"), dtype=np.float32))
    new, trained, with_lora = pictures
    assert all(picture.std() > 1 for picture in pictures)
    assert np.abs(trained - new).mean() > 0.5 and np.abs(with_lora - trained).mean() > 0.1
