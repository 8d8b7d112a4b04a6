"""A process that measures: `runner.py` starts it and calls its functions. Everything that needs torch runs here.

In a process of its own, a way to compute has a peak of memory of its own.
"""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import layer_norm, linear, pad

from bench.files import ADAPTER, Model
from bench.runner import Step, Way
from host.dynamic_vram import start_dynamic_vram
from pack import make_importable

options = argparse.Namespace()  # the benchmark's options, set by `main`


class Transformers:
    """transformers as its documentation shows it: `from_pretrained`, then a call; a T5's text is padded.

    read: if given, it reads a file under RankGen's names, whose tensors become the model's weights in place of
          `from_pretrained`.
    """

    def __init__(self, way: Way, read: Callable[[Path], dict[str, Tensor]] | None = None) -> None:
        import transformers  # noqa: PLC0415 -- it would count as memory of the pack's own way

        self.way, self.read, self.recipe = way, read, recipe("keep")
        self.config = transformers.AutoConfig.from_pretrained(way.path.parent)
        self.is_t5 = self.config.model_type == "t5"
        # Importing them is not a part of loading.
        self.model_class = transformers.T5EncoderModel if self.is_t5 else transformers.LlamaModel
        self.tokenizer_class = transformers.AutoTokenizer

    def load(self) -> None:
        folder = self.way.path.parent
        if self.read:
            model = self.model_of(self.read(self.way.path))
        else:
            names = {"key_mapping": {r"^t5_encoder\.": ""}} if self.is_t5 else {}
            dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[self.way.dtype]
            model = self.model_class.from_pretrained(folder, dtype=dtype, local_files_only=True, **names)
        self.model = model.eval().to(self.way.device)
        self.tokenizer = self.tokenizer_class.from_pretrained(folder, local_files_only=True)

    def model_of(self, tensors: dict[str, Tensor]) -> Any:
        """transformers' T5 encoder whose weights are these tensors themselves."""
        tensors = {name.removeprefix("t5_encoder."): tensor for name, tensor in tensors.items()}
        del tensors["projection.weight"]
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
        with torch.device("meta"):
            model = self.model_class(self.config)
        model.load_state_dict(tensors, strict=True, assign=True)
        return model

    def expect(self, known: Sequence[bool]) -> None:
        """Does nothing, because nothing is cached here."""

    def states(self, text: str) -> Tensor:
        """The LLM's states: [256, width] of a T5, whose adapter wants the padding too; of others [tokens, width]."""
        ids = self.tokenizer(self.recipe.prompt(text), return_tensors="pt", verbose=False)["input_ids"]
        ids = ids[:, : self.recipe.tokens]
        padding = (0, self.recipe.tokens - ids.shape[1] if self.is_t5 else 0)
        mask = pad(torch.ones_like(ids), padding).to(self.way.device)
        ids = pad(ids, padding).to(self.way.device)
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state[0].float()

    def context(self, number: int, text: str) -> Tensor:
        """The published Cross-Adapter's maths. In its file `kv_norm` is for the LLM's side, `q_norm` for CLIP's."""
        clip = clip_states(self.way.device)[number]

        def apply(name: str, x: Tensor) -> Tensor:
            return linear(x, self.adapter[f"{name}.weight"], self.adapter[f"{name}.bias"])

        def norm(name: str, x: Tensor) -> Tensor:
            return layer_norm(x, x.shape[-1:], self.adapter[f"{name}.weight"], self.adapter[f"{name}.bias"])

        def heads(name: str, x: Tensor) -> Tensor:
            return apply(name, x).unflatten(-1, (self.recipe.heads, -1)).transpose(1, 2)

        llm, seen = apply("llm_proj", self.states(text)[None]), norm("q_norm", clip)
        query, key, value = (
            heads("q_proj", norm("kv_norm", llm)),
            heads("k_proj", seen),
            heads("v_proj", seen),
        )
        attention = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        llm = llm + apply("out_proj", (attention @ value).transpose(1, 2).flatten(-2))
        inner = apply("FFN.0", norm("norm", llm))
        return torch.cat([clip, llm + apply("FFN.2", inner * torch.sigmoid(1.702 * inner))], dim=1)[0]

    @cached_property
    def adapter(self) -> dict[str, Tensor]:
        file = options.models / "llm4gen" / ADAPTER
        weights = torch.load(file, weights_only=True)
        return {
            name.removeprefix("CrossFusionModule.0."): tensor.to(self.way.device)
            for name, tensor in weights.items()
        }


class Ours:
    """What the pack's nodes do, through their own classes, in a ComfyUI without its server."""

    def __init__(self, way: Way) -> None:
        enter_comfyui(way.device)
        from llm4gen.models.features.memory_cache import MemoryCache  # noqa: PLC0415
        from llm4gen.nodes import load, managed  # noqa: PLC0415

        self.nodes, self.store, self.new_cache = load, managed.FEATURES, MemoryCache
        file = way.path if way.path.suffix == ".gguf" else way.path.parent
        self.name, self.dtype = file.relative_to(options.models / "text_encoders").as_posix(), way.dtype

    def load(self) -> None:
        self.llm = self.nodes.LoadLLMEncoder.execute(self.name, self.dtype).result[0]
        self.recipe = recipe("keep" if self.llm.llm.file.is_t5 else "drop")
        # Without this, the first prompt would load the weights.
        self.llm.load(self.llm.llm.depth(self.recipe))

    def expect(self, known: Sequence[bool]) -> None:
        """Makes sure that the next texts are cached as `known` says, one entry for each. If none is, it empties the
        cache."""
        if not any(known):
            self.cache = self.new_cache()
        self.store.memory = self.cache  # each way in a process has its own
        self.known = list(known)

    def features(self, text: str) -> Any:
        """The LLM's states of each distinct row."""
        ids = self.llm.llm.tokenize(text, self.recipe).ids
        assert (self.store.get(self.llm.key(ids, self.recipe)) is not None) == self.known.pop(0)
        return self.llm.features(ids, self.recipe)

    def states(self, text: str) -> Tensor:
        features = self.features(text)
        return features.rows.expand(features.states)

    def context(self, number: int, text: str) -> Tensor:
        """ComfyUI would not even run the negative prompt's node again; here the adapter's half of it is computed."""
        clip = clip_states("cpu")[number]
        return torch.cat([clip, self.adapter.fuse(clip, self.features(text)).cpu()], dim=1)[0]

    @cached_property
    def adapter(self) -> Any:
        adapter = self.nodes.LoadCrossAdapter.execute(ADAPTER).result[0]
        assert adapter.recipe == self.recipe
        return adapter


METHODS: dict[str, Callable[[Way], Transformers | Ours]] = {
    # The file is memory-mapped, which the published script does not do: this is for comparing the computation.
    "published": partial(Transformers, read=load_file),
    "torch.load": partial(
        Transformers, read=partial(torch.load, weights_only=True)
    ),  # as the published script
    "transformers": Transformers,
    "ours": Ours,
}
opened: dict[Way, Transformers | Ours] = {}


def recipe(padding: str) -> Any:
    """The published recipe, but with the benchmark's template and this padding."""
    from llm4gen.models.recipe import Recipe  # noqa: PLC0415

    return Recipe(template=options.template, padding=padding)


@cache
def enter_comfyui(device: str) -> None:
    """Makes ComfyUI importable, and adds the models to its folders."""
    sys.path.insert(0, str(options.comfyui))
    from comfy.cli_args import args  # noqa: PLC0415

    args.cpu = device == "cpu"  # before the rest of ComfyUI is imported, which looks for a device
    start_dynamic_vram()
    import folder_paths  # noqa: PLC0415

    from llm4gen.nodes import folders  # noqa: PLC0415

    folders.register()
    for key in (folders.ENCODERS, folders.ADAPTERS):
        folder_paths.add_model_folder_path(key, str(options.models / key))


@cache
def clip_states(device: str) -> list[Tensor]:
    """Random numbers in place of CLIP's states of two prompts, [1, 77, 768] each; the same in every process."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 77, 768, generator=generator).to(device) for _ in range(2)]


def prepare(way: Way) -> None:
    """Imports what the way needs, but loads nothing."""
    opened[way] = METHODS[way.method](way)


@torch.inference_mode()  # as ComfyUI runs its nodes
def load(way: Way) -> dict[str, float]:
    """Loads the LLM's weights and its tokenizer. Returns the seconds, and the bytes before and at the peak."""
    idle, begin = psutil.Process().memory_info().rss, time.perf_counter()
    opened[way].load()
    return {"seconds": time.perf_counter() - begin, "idle": idle, "peak": memory(way)["peak"]}


@torch.inference_mode()
def run(way: Way, step: Step, path: Path | None) -> float:
    """Does a step and returns its seconds. path: where its results are saved."""
    method = opened[way]
    method.expect(step.known)
    begin = time.perf_counter()
    if step.fused:
        results = [method.context(number, text).cpu() for number, text in enumerate(step.texts)]
    else:
        results = [method.states(text).cpu() for text in step.texts]
    seconds = time.perf_counter() - begin
    if path:
        save_file({str(number): tensor.contiguous() for number, tensor in enumerate(results)}, path)
    return seconds


def memory(way: Way | None) -> dict[str, float]:
    """The most bytes that this process has had in memory, and on the accelerator. Pages of a mapped file count once
    they were read. `way` is not needed: its process is this one."""
    device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    if dynamic_vram := sys.modules.get("comfy_aimdo.control"):
        # Its memory is not torch's. What it counts may contain torch's, so the two are not added.
        device = max(device, dynamic_vram.get_total_vram_usage())
    if sys.platform == "win32":
        return {"peak": psutil.Process().memory_info().peak_wset, "device": device}
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return {"peak": int(status.split("VmHWM:")[1].split()[0]) * 1024, "device": device}
    import resource  # noqa: PLC0415

    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "device": device}


def describe() -> dict[str, Any]:
    """Describes torch and its devices for the output. In torch before 2.6, it looks only for CUDA."""
    able = getattr(torch.cpu, "get_capabilities", dict)()
    device = "cuda" if torch.cuda.is_available() else None
    if hasattr(torch, "accelerator"):
        found = torch.accelerator.current_accelerator(check_available=True)
        device = found.type if found else None
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "products": [
            name for name in ("avx512_bf16", "amx_bf16", "avx512_fp16", "amx_fp16") if able.get(name)
        ],
        "accelerator": device,
        "accelerator name": torch.cuda.get_device_name() if device == "cuda" else device,
    }


def make(model: Model, kind: str) -> None:
    """Makes one kind of file of a model."""
    from bench import making  # noqa: PLC0415 -- its packages would count as memory of the ways

    making.make(model, kind, options.tokenizer, options.models / "llm4gen" / ADAPTER)


def main(functions: Mapping[str, Any]) -> None:
    """Reads the options, then calls from stdin, and writes results to stdout, until stdin ends.

    functions: what may be called, by name.
    """
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print goes to stderr
    make_importable()
    vars(options).update(vars(pickle.load(sys.stdin.buffer)))
    if options.threads:
        torch.set_num_threads(options.threads)
    while True:
        try:
            function, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(functions[function](*arguments), results)
        results.flush()


if __name__ == "__main__":
    main(globals())
