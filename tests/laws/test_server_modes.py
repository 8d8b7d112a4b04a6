"""The same prompt under the memory modes that ComfyUI can be started with, and lists of prompts, by its server."""

import pytest
import torch
from safetensors.torch import load_file

from sandbox.client import Client
from sandbox.model_choice import make_standins
from sandbox.server import Server
from sandbox.standins import ADAPTER, CHECKPOINT, ENCODER
from tiny import relative_error

MODES = ["--disable-dynamic-vram", "--disable-smart-memory", "--cache-none"]
GPU_MODES = ["--cpu", "--lowvram", "--novram", "--highvram", "--gpu-only", "--enable-dynamic-vram"]
WORDS = ["a red cat on a mat", "a dog in the snow, a very long sentence about a dog in the snow"]


def prompt(**inputs):
    """Two steps on the words, to a latent file."""
    loaders = {"clip": ["checkpoint", 1], "llm": ["llm", 0], "adapter": ["adapter", 0]}
    sampler = {
        "seed": 1,
        "steps": 2,
        "cfg": 7.5,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1.0,
    }
    graph = {
        "checkpoint": ("CheckpointLoaderSimple", {"ckpt_name": CHECKPOINT}),
        "llm": ("LLM4GEN_LoadLLMEncoder", {"encoder_name": ENCODER, "dtype": "fp32"}),
        "adapter": ("LLM4GEN_LoadCrossAdapter", {"adapter_name": ADAPTER}),
        "positive": ("LLM4GEN_Conditioning", loaders | inputs),
        "negative": ("LLM4GEN_Conditioning", loaders | {"text": ""}),
        "latent": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "sampler": (
            "KSampler",
            sampler
            | {
                "model": ["checkpoint", 0],
                "positive": ["positive", 0],
                "negative": ["negative", 0],
                "latent_image": ["latent", 0],
            },
        ),
        "save": ("SaveLatent", {"samples": ["sampler", 0], "filename_prefix": "modes"}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in graph.items()}


def latents(server, graph):
    files = Client(server.url).run(graph)["save"]["latents"]
    return [load_file(server.output / file["filename"])["latent_tensor"] for file in files]


@pytest.fixture(scope="module")
def usual(server):
    """What the server makes of each of the words when started plainly."""
    return [latents(server, prompt(text=words))[0] for words in WORDS]


@pytest.mark.parametrize("mode", MODES + GPU_MODES)
def test_a_memory_mode_changes_nothing(mode, usual, host, tmp_path):
    if mode in GPU_MODES and not host.has_accelerator:
        pytest.skip(f"NO GPU HERE: {mode} is not checked")
    with Server(host, tmp_path, [make_standins(host)], arguments=[mode]) as server:
        (found,) = latents(server, prompt(text=WORDS[0]))
        assert mode in server.arguments and server.alive
    if host.has_accelerator:  # what is computed elsewhere is rounded elsewhere
        assert relative_error(found, usual[0]) <= 2e-2
    else:
        assert torch.equal(found, usual[0])


def test_a_list_of_prompts_gives_one_picture_each(server, usual):
    """ComfyUI calls a node once for each entry of a list."""
    graph = prompt(text=["list", 0])
    for index, words in enumerate(WORDS):
        graph[f"words{index}"] = {"class_type": "PrimitiveString", "inputs": {"value": words}}
    entries = {f"inputs.input{index}": [f"words{index}", 0] for index in range(len(WORDS))}
    graph["list"] = {"class_type": "CreateList", "inputs": entries}
    found = latents(server, graph)
    assert len(found) == len(usual) and all(map(torch.equal, found, usual))
    assert not torch.equal(*found)
