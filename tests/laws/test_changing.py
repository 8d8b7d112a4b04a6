"""One server, in which encoders, adapters and prompts change and much is cancelled: the next prompt always works."""

import json
import random
import shutil
import time
from itertools import count, islice

import pytest
from safetensors.torch import save_file

import gguf_files
import tiny
from gguf_files import Kind
from paths import T5_TOKENIZER
from sandbox.client import Client, Interrupted
from sandbox.model_choice import make_standins
from sandbox.server import Server
from sandbox.standins import CHECKPOINT

ROUNDS = 50
# Encoder → the adapters that fit it, and the dtypes to try.
CHOICES = {
    "deep.safetensors": (["wide.safetensors", "other.safetensors"], ["auto", "bf16", "fp8"]),
    "small.gguf": (["wide.safetensors"], ["auto", "fp32"]),
    "qwen": (["narrow.safetensors"], ["auto", "fp16"]),
}


@pytest.fixture(scope="module")
def folder(module_path):
    """Encoders of many layers, so that Cancel comes in the middle."""
    encoders, adapters = module_path / "text_encoders", module_path / "llm4gen"
    adapters.mkdir()
    shutil.copytree(T5_TOKENIZER, encoders / "qwen")
    gguf_files.make("Qwen2", vocab_size=tiny.VOCABULARY, num_hidden_layers=24).save_pretrained(
        encoders / "qwen"
    )
    sizes = {"d_model": 256, "d_ff": 1024, "d_kv": 64}
    save_file(tiny.rankgen_tensors(tiny.t5_encoder(**sizes, num_layers=24)), encoders / "deep.safetensors")
    gguf_files.write_t5(encoders / "small.gguf", tiny.t5_encoder(**sizes, num_layers=12), Kind.Q8_0)
    for name, width, heads in (("wide", 256, 8), ("other", 256, 4), ("narrow", 64, 8)):
        recipe = {"llm4gen": json.dumps({"heads": heads, "layer": -2 if name == "other" else -1})}
        save_file(tiny.adapter_tensors(clip=768, llm=width), adapters / f"{name}.safetensors", recipe)
    return module_path


def graphs(seed):
    """Prompts of one node chain, no two alike."""
    chance = random.Random(seed)
    for number in count():
        encoder = chance.choice(list(CHOICES))
        adapters, dtypes = CHOICES[encoder]
        text = f"{'a very ' * chance.randrange(60)}large cat, number {number} of {seed}"
        inputs = {"clip": ["1", 1], "llm": ["2", 0], "adapter": ["3", 0], "text": text}
        loader = {"encoder_name": encoder, "dtype": chance.choice(dtypes)}
        yield {
            "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}},
            "2": {"class_type": "LLM4GEN_LoadLLMEncoder", "inputs": loader},
            "3": {
                "class_type": "LLM4GEN_LoadCrossAdapter",
                "inputs": {"adapter_name": chance.choice(adapters)},
            },
            "4": {"class_type": "LLM4GEN_Conditioning", "inputs": inputs},
            "5": {"class_type": "PreviewAny", "inputs": {"source": ["4", 0]}},
        }


def cancelled(client, graph, moment):
    """Runs a prompt and cancels it so many seconds after its text began to be read; whether that was in time. (Signs of
    progress are too few to count: the host tells of ten a second.)"""

    def on_event(kind, data):
        if kind == "executing" and data["node"] == "4":
            time.sleep(moment)
            client.interrupt()

    try:
        client.run(graph, on_event)
    except Interrupted:
        return True
    return False


def test_after_any_cancel_the_next_prompt_works_and_gives_what_a_fresh_server_gives(host, folder, tmp_path):
    places, chance = [make_standins(host), folder], random.Random(0)
    found, cancels = [], 0
    with Server(host, tmp_path / "changing", places) as server:
        client, spoilt, kept = Client(server.url), graphs("spoilt"), graphs("kept")
        for _ in range(ROUNDS):
            cancels += cancelled(client, next(spoilt), chance.uniform(0, 0.1))
            found.append(client.run(next(kept))["5"])
    assert cancels >= ROUNDS / 5, "too little was cancelled in time to tell anything"
    with Server(host, tmp_path / "fresh", places) as server:
        client, kept = Client(server.url), graphs("kept")
        every_fifth = list(islice(kept, 0, ROUNDS, 5))
        assert [client.run(graph)["5"] for graph in every_fifth] == found[::5]
    assert len({json.dumps(output) for output in found}) == ROUNDS
