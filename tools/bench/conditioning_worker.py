"""One way from words to context, in a process of its own that answers `bench.py` line by line.

Its own process, so that the peak of memory is its own. It reads JSON commands from stdin and writes one JSON
answer a line to stdout; whatever libraries print goes to stderr.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import layer_norm, linear, pad

from bench.child import device_peak, enter_host, memory_now, memory_peak, nodes_over, serve, take_stdout

LENGTH = 256  # LLM tokens of the published path, padding included
HEADS = 8  # of the Cross-Adapter
FIRST, REPEATED = "first", "repeated"


class Way(Protocol):
    """One way to do it. Contexts are [333, 768], on the CPU."""

    def load(self) -> None:
        """Loads the LLM: what the memory of loading is measured over."""

    def prepare(self) -> None:
        """Loads the rest."""

    def context(self, positive: str, negative: str, which: str) -> dict[str, Tensor]:
        """The context of both prompts. which: with nothing cached, or with the negative known already."""


class Published:
    """transformers' encoder over 256 padded rows in fp32, both prompts each time, and the adapter's maths in
    plain PyTorch. The file is memory-mapped, which the published script does not do: the comparison is of the
    computing."""

    def __init__(self, encoder: Path, adapter: Path, tokenizer: Path, device: str) -> None:
        import transformers  # noqa: PLC0415 -- its encoders are memory that the other way does without

        from bench.transformers_t5 import encoder_of  # noqa: PLC0415

        self.encoder, self.adapter, self.tokenizer, self.device = encoder, adapter, tokenizer, device
        self.transformers, self.encoder_of = transformers, encoder_of

    def load(self) -> None:
        with safe_open(self.encoder, framework="pt") as file:
            loaded = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.model = self.encoder_of(loaded).to(self.device)

    def prepare(self) -> None:
        self.tokenize = self.transformers.AutoTokenizer.from_pretrained(
            str(self.tokenizer), local_files_only=True
        )
        weights = torch.load(self.adapter, map_location=self.device, weights_only=True)
        self.weights = {name.removeprefix("CrossFusionModule.0."): tensor for name, tensor in weights.items()}
        self.clip = clip_states(self.device)

    def context(self, positive: str, negative: str, which: str) -> dict[str, Tensor]:
        return {
            name: torch.cat([clip, self.fuse(clip, self.read(text))], dim=1)[0].cpu()
            for (name, clip), text in zip(self.clip.items(), (positive, negative), strict=True)
        }

    def read(self, text: str) -> Tensor:
        ids = self.tokenize("pre " + text, return_tensors="pt", verbose=False)["input_ids"][:, :LENGTH]
        missing = (0, LENGTH - ids.shape[1])
        mask = pad(torch.ones_like(ids), missing)
        ids, mask = pad(ids, missing).to(self.device), mask.to(self.device)
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state

    def fuse(self, clip: Tensor, llm: Tensor) -> Tensor:
        """FACTS of the published module: `kv_norm` is for the LLM side, `q_norm` for CLIP's."""

        def apply(name: str, x: Tensor) -> Tensor:
            return linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

        def norm(name: str, x: Tensor) -> Tensor:
            return layer_norm(
                x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-5
            )

        def heads(x: Tensor) -> Tensor:
            return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

        llm = apply("llm_proj", llm)
        queries, seen = norm("kv_norm", llm), norm("q_norm", clip)
        query, key, value = (
            heads(apply("q_proj", queries)),
            heads(apply("k_proj", seen)),
            heads(apply("v_proj", seen)),
        )
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        llm = llm + apply("out_proj", (weights @ value).transpose(1, 2).flatten(-2))
        inner = apply("FFN.0", norm("norm", llm))
        return llm + apply("FFN.2", inner * torch.sigmoid(1.702 * inner))


class Ours:
    """What the three nodes do, through their own classes, in a ComfyUI without its server."""

    def __init__(self, encoder: Path, adapter: Path, dtype: str) -> None:
        nodes = nodes_over(encoder.parent, adapter.parent)
        self.load_llm = lambda: nodes.LoadLLMEncoder.execute(encoder.name, dtype).result[0]
        self.load_adapter = lambda: nodes.LoadCrossAdapter.execute(adapter.name).result[0]
        self.clip = clip_states("cpu")

    def load(self) -> None:
        from llm4gen.models.recipe import Recipe  # noqa: PLC0415

        self.llm = self.load_llm()
        self.llm.load(self.llm.llm.depth(Recipe()))  # which else waits for the first prompt

    def prepare(self) -> None:
        self.adapter = self.load_adapter()

    def context(self, positive: str, negative: str, which: str) -> dict[str, Tensor]:
        from llm4gen.nodes.managed import FEATURES  # noqa: PLC0415

        if which == FIRST:
            FEATURES.memory.clear()
        # ComfyUI would not run the negative's node again at all; here its adapter half is.
        prompts = [self.llm.llm.tokenize(text, self.adapter.recipe).ids for text in (positive, negative)]
        known = [FEATURES.get(self.llm.key(ids, self.adapter.recipe)) is not None for ids in prompts]
        assert known == [False, which == REPEATED]
        return {
            name: torch.cat([clip, self.fuse(clip, ids)], dim=1)[0]
            for (name, clip), ids in zip(self.clip.items(), prompts, strict=True)
        }

    def fuse(self, clip: Tensor, ids: tuple[int, ...]) -> Tensor:
        return self.adapter.fuse(clip, self.llm.features(ids, self.adapter.recipe)).cpu()


def clip_states(device: str) -> dict[str, Tensor]:
    """Stands for CLIP's states of the two prompts, [1, 77, 768] each; the same in every process."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(1, 77, 768, generator=generator).to(device) for name in ("positive", "negative")
    }


@torch.inference_mode()  # as the host runs its nodes
def answer(way: Way, command: dict[str, Any]) -> dict[str, Any]:
    """Does one command: `load`, `prepare`, `context` (first or repeated) or `peak`."""
    start = time.perf_counter()
    if command["do"] == "load":
        before = memory_now()
        way.load()
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "grown": memory_peak() - before, "peak": memory_peak()}
    if command["do"] == "prepare":
        way.prepare()
        return {}
    if command["do"] == "peak":
        return {"peak": memory_peak(), "device_peak": device_peak()}
    context = way.context(command["positive"], command["negative"], command["which"])
    seconds = time.perf_counter() - start
    if command.get("save"):
        save_file({name: tensor.contiguous() for name, tensor in context.items()}, command["save"])
    return {"seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--dtype", help="of Load LLM Encoder; without it, the published way is measured")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="cpu, or what torch calls the accelerator")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    replies = take_stdout()
    if options.dtype is None:
        tokenizer = options.comfyui / "comfy" / "text_encoders" / "t5_tokenizer"
        way: Way = Published(options.encoder, options.adapter, tokenizer, options.device)
    else:
        enter_host(options.comfyui, options.device)
        way = Ours(options.encoder, options.adapter, options.dtype)
    serve(partial(answer, way), replies)


if __name__ == "__main__":
    main()
