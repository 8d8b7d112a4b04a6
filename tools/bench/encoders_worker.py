"""One way from an LLM's file to its states of a text, in a process of its own that answers `bench_encoders.py`."""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.child import device_peak, enter_host, memory_now, memory_peak, nodes_over, serve, take_stdout

LENGTH = 256  # tokens of the published path, padding included


class Way(Protocol):
    """One way to do it."""

    def load(self) -> None: ...

    def states(self, text: str) -> Tensor:
        """[256, width] of a T5, whose adapter wants the padding too; of others [tokens, width], on the CPU."""


class Plain:
    """transformers as its documentation has it: from_pretrained and a call."""

    def __init__(self, folder: Path, dtype: str, tokenizer: Path, device: str) -> None:
        import transformers  # noqa: PLC0415

        self.folder, self.dtype, self.tokenizer = folder, getattr(torch, dtype), tokenizer
        self.device = device
        self.transformers = transformers
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
        self.padded = kind == "t5"
        # Looked up here, which imports it: that is no part of loading.
        self.kind = transformers.T5EncoderModel if self.padded else transformers.LlamaModel

    def load(self) -> None:
        names = {"key_mapping": {r"^t5_encoder\.": ""}} if self.padded else {}
        model = self.kind.from_pretrained(self.folder, dtype=self.dtype, local_files_only=True, **names)
        self.ready(model)

    def ready(self, model) -> None:
        self.model = model.eval().to(self.device)
        self.tokenize = self.transformers.AutoTokenizer.from_pretrained(self.tokenizer, local_files_only=True)

    def states(self, text: str) -> Tensor:
        padding = {"padding": "max_length", "max_length": LENGTH, "truncation": True} if self.padded else {}
        read = self.tokenize(text, return_tensors="pt", **padding).to(self.device)
        wanted = {name: read[name] for name in ("input_ids", "attention_mask")}
        return self.model(**wanted).last_hidden_state[0].float().cpu()


class Unpickled(Plain):
    """The T5 from its pickle by torch.load, as the published script reads it, in fp32."""

    def __init__(self, folder: Path, pickle: Path, tokenizer: Path, device: str) -> None:
        from bench.transformers_t5 import encoder_of  # noqa: PLC0415

        super().__init__(folder, "float32", tokenizer, device)
        self.pickle, self.encoder_of = pickle, encoder_of

    def load(self) -> None:
        self.ready(self.encoder_of(torch.load(self.pickle, weights_only=True)))


class Ours:
    """What the loader node and the LLM's half of LLM4GEN Conditioning do, in a ComfyUI without its server."""

    def __init__(self, root: Path, name: str, dtype: str) -> None:
        """root: a folder of text encoders. name: of one in it, as the node lists it."""
        nodes = nodes_over(root)
        self.load_llm = lambda: nodes.LoadLLMEncoder.execute(name, dtype).result[0]

    def load(self) -> None:
        from llm4gen.models.recipe import Recipe  # noqa: PLC0415

        self.llm = self.load_llm()
        padding = "keep" if self.llm.llm.file.is_t5 else "drop"
        self.recipe = Recipe(template="{text}", padding=padding)
        self.llm.load(self.llm.llm.depth(self.recipe))

    def states(self, text: str) -> Tensor:
        ids = self.llm.llm.tokenize(text, self.recipe).ids
        features = self.llm.features(ids, self.recipe)
        return features.rows.expand(features.states).cpu()


@torch.inference_mode()  # as the host runs its nodes
def answer(way: Way, command: dict[str, Any]) -> dict[str, Any]:
    """Does one command: `load`, `states` (of a `text`, to be saved in `save`) or `memory`."""
    if command["do"] == "memory":
        return {"now": memory_now(), "peak": memory_peak(), "device_peak": device_peak()}
    start = time.perf_counter()
    if command["do"] == "load":
        way.load()
        return {"seconds": time.perf_counter() - start}
    states = way.states(command["text"])
    seconds = time.perf_counter() - start
    if command["save"]:
        save_file({"states": states.contiguous()}, command["save"])
    return {"seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True, help="the folder of text encoders")
    parser.add_argument("--encoder", required=True, help="as Load LLM Encoder lists it")
    parser.add_argument("--dtype", help="of Load LLM Encoder; without it, transformers is measured")
    parser.add_argument("--plain", help="torch's dtype, for transformers")
    parser.add_argument(
        "--folder", type=Path, help="for transformers: the config, and weights that are no pickle"
    )
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="cpu, or what torch calls the accelerator")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    replies = take_stdout()
    if options.dtype:
        enter_host(options.comfyui, options.device)
        way: Way = Ours(options.root, options.encoder, options.dtype)
    elif options.encoder.endswith(".bin"):
        way = Unpickled(options.folder, options.root / options.encoder, options.tokenizer, options.device)
    else:
        way = Plain(options.folder, options.plain, options.tokenizer, options.device)
    serve(partial(answer, way), replies)


if __name__ == "__main__":
    main()
