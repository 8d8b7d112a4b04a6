"""Makes small random models under the names that published checkpoints use, without ComfyUI."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

from llm4gen.models.llm import open_llm

VOCABULARY = 32128


def load_encoder(path: Path, **options) -> torch.nn.Module:
    """Loads the encoder in a file or folder, without ComfyUI. options: as in `LLMFile.load`."""
    return open_llm(path).load(**options)


def t5_config(**changes) -> T5Config:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4, "vocab_size": VOCABULARY}
    return T5Config(feed_forward_proj="gated-gelu", dropout_rate=0.0, **(sizes | changes))


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Draws random weights: matrices keep the scale of their input, and relative positions change the result."""
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "relative_attention_bias" in name or "shared" in name:
            torch.nn.init.normal_(weight)
        elif weight.ndim == 2:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        else:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
        if ".q." in name:
            weight.data /= model.config.d_kv**0.5
    return model.eval().requires_grad_(False)


def t5_encoder(**changes) -> T5EncoderModel:
    """transformers' T5 encoder: the oracle."""
    return randomise(T5EncoderModel(t5_config(**changes)))


def whole_t5(**changes) -> T5ForConditionalGeneration:
    """transformers' T5 with its decoder and head."""
    return randomise(T5ForConditionalGeneration(t5_config(tie_word_embeddings=False, **changes)))


def own_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict with copies of its tensors: safetensors does not save tensors that share memory."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def rankgen_tensors(oracle: T5EncoderModel) -> dict[str, torch.Tensor]:
    """The oracle's weights under RankGen's names."""
    tensors = {f"t5_encoder.{name}": tensor for name, tensor in own_tensors(oracle).items()}
    width = oracle.config.d_model
    return tensors | {"projection.weight": torch.zeros(width, width)}


def adapter_tensors(clip=64, llm=32, mlp=128) -> dict[str, torch.Tensor]:
    """A random Cross-Adapter under the published names."""
    torch.manual_seed(1)
    shapes = {"llm_proj": (clip, llm), "FFN.0": (mlp, clip), "FFN.2": (clip, mlp)}
    shapes |= dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), (clip, clip))
    tensors = {}
    for name, (out, inner) in shapes.items():
        tensors[f"{name}.weight"] = torch.randn(out, inner) * inner**-0.5
        tensors[f"{name}.bias"] = torch.randn(out) * 0.1
    for name in ("q_norm", "kv_norm", "norm"):
        tensors[f"{name}.weight"] = torch.rand(clip) + 0.5
        tensors[f"{name}.bias"] = torch.randn(clip) * 0.1
    return {f"CrossFusionModule.0.{name}": tensor for name, tensor in tensors.items()}


def save_shards(folder: Path, tensors: dict[str, torch.Tensor], suffix: str) -> None:
    """Writes two shards and their index, as transformers saves a large model. suffix: safetensors or bin."""
    folder.mkdir()
    names = sorted(tensors)
    weight_map = {}
    for part, half in enumerate((names[::2], names[1::2])):
        file = f"part-{part}.{suffix}"
        save = save_file if suffix == "safetensors" else torch.save
        save({name: tensors[name] for name in half}, folder / file)
        weight_map |= dict.fromkeys(half, file)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    (folder / f"{stem}.{suffix}.index.json").write_text(
        json.dumps({"weight_map": weight_map}), encoding="utf-8"
    )


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference, relative to the norm of `expected`."""
    return ((value.float() - expected).norm() / expected.norm()).item()


class CastingLayers:
    """Layers that cast their weights to the dtype of their input, as ComfyUI's layers do."""

    class Linear(torch.nn.Linear):
        def forward(self, x):
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return torch.nn.functional.linear(x, self.weight.to(x.dtype), bias)

    RMSNorm = torch.nn.RMSNorm
    Embedding = torch.nn.Embedding


class Payload:
    """An object whose unpickling runs code, which makes the file `path`."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def identical(one, other):
    """Whether two conditionings, or parts of them, are equal to the bit, with their options."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(identical(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(identical, one, other))
    return one == other


def weights_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a model's weights, by name."""
    return {name: weight.clone() for name, weight in module.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights have the same names, and the same numbers to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def untouched(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights have the same names and bytes.

    ComfyUI leaves CLIP's text projection, which SD1.5 checkpoints lack, as the memory was. That may hold NaN, which
    equals nothing as a number.
    """

    def bytes_of(weight: torch.Tensor) -> torch.Tensor:
        return weight.reshape(-1).view(torch.uint8)

    return before.keys() == after.keys() and all(
        weight.dtype == after[name].dtype and torch.equal(bytes_of(weight), bytes_of(after[name]))
        for name, weight in before.items()
    )
