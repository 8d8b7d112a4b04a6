"""Makes the files that are measured, with random weights.

Every weight is a number that bf16 holds exactly. The fp32 and the bf16 file are therefore the same model, and
differences between their results come from the computation.
"""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from bench.files import FP32, HEAD_WIDTH, PICKLE, Model
from bench.gguf_pack import Kind
from bench.gguf_write import decoder_header, decoder_tensors, t5_tensors, write_gguf
from convert import convert
from files.safetensors_writer import Outline, write_tensors
from llm4gen.models.checkpoints.adapter import ADAPTER_NAMES
from llm4gen.models.cross_adapter import CrossAdapter, CrossAdapterConfig
from llm4gen.models.recipe import Recipe

CONTEXT_DIM = 768  # the width of CLIP's states, and of the context that SD1.5's UNet attends to
UNUSED = "projection.weight"  # RankGen's file has this matrix, but the encoder does not use it

Shapes = dict[str, tuple[int, ...]]


def make(model: Model, kind: str, tokenizer: Path, adapter: Path) -> None:
    """Makes one kind of file, in a folder that gets its name when all of it is written."""
    config = transformers.AutoConfig.for_model(**model.config)
    target, source = model.file(kind), model.file(FP32)
    fresh = target.parent.with_name(f"{target.parent.name}.unfinished")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(tokenizer, fresh)
    (fresh / "config.json").write_text(json.dumps(model.config), encoding="utf-8")
    path = fresh / target.name
    if kind == FP32:
        write_random(path, shapes_of(model, config))
        if model.is_t5:
            write_adapter(adapter, config.d_model)
    elif kind == PICKLE:
        torch.save(load_file(source), path)
    elif path.suffix == ".gguf":
        write_quantised(path, source, model, config, Kind[kind.removeprefix("GGUF ")])
    else:
        convert(source.parent, path if model.is_t5 else fresh, kind, False, lambda: None)
    fresh.replace(target.parent)


def shapes_of(model: Model, config: transformers.PretrainedConfig) -> Shapes:
    """The names and shapes of the tensors in the fp32 file."""
    with torch.device("meta"):
        encoder = (transformers.T5EncoderModel if model.is_t5 else transformers.LlamaModel)(config)
    shapes = {f"{model.prefix}{name}": tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    if model.is_t5:
        del shapes[f"{model.prefix}encoder.embed_tokens.weight"]  # a second name of `shared.weight`
        shapes[UNUSED] = (config.d_model, config.d_model)
    return shapes


def write_random(path: Path, shapes: Shapes) -> None:
    """Draws and writes one tensor after the other."""
    outline = Outline({name: (torch.float32, shape) for name, shape in shapes.items()})
    values = ((name, weight(name, shapes[name]).bfloat16().float()) for name in outline.names())
    with path.open("wb") as file:
        write_tensors(file.write, outline, values)


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of an LLM, distributed as T5 is initialised: norms are 1, embeddings have a deviation of 1."""
    if len(shape) == 1:
        return torch.ones(shape)
    if name.endswith(("shared.weight", "embed_tokens.weight", "relative_attention_bias.weight")):
        return draw(name, shape, 1.0)
    # T5 does not scale its attention scores; its queries are small instead.
    smaller = HEAD_WIDTH if name.endswith("SelfAttention.q.weight") else 1
    return draw(name, shape, (shape[1] * smaller) ** -0.5)


def draw(name: str, shape: tuple[int, ...], deviation: float) -> Tensor:
    """Normally distributed fp32 values, seeded by the tensor's name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=generator).mul_(deviation)


def write_quantised(
    path: Path, source: Path, model: Model, config: transformers.PretrainedConfig, kind: Kind
) -> None:
    """Writes a model's weights as a `.gguf` file."""
    named = ((name.removeprefix(model.prefix), tensor) for name, tensor in load_file(source).items())
    tensors = ((name, tensor) for name, tensor in named if name != UNUSED)
    if model.is_t5:
        header = {"attention.layer_norm_epsilon": config.layer_norm_epsilon}
        write_gguf(path, "t5encoder", t5_tensors(tensors, config.num_layers), kind, header)
    else:
        write_gguf(path, "llama", decoder_tensors(tensors, config), kind, decoder_header(config))


def write_adapter(path: Path, llm_dim: int) -> None:
    """Writes a Cross-Adapter. All its norms and biases differ, so that an exchange of two would change the result."""
    config = CrossAdapterConfig(CONTEXT_DIM, llm_dim, 4 * CONTEXT_DIM, Recipe().heads)
    shapes = {name: tensor.shape for name, tensor in CrossAdapter(config, device="meta").state_dict().items()}
    tensors = {}
    for published, ours in ADAPTER_NAMES.items():
        weight, bias = f"{published}.weight", f"{published}.bias"
        shape = shapes[f"{ours}.weight"]
        mean, deviation = (0.0, shape[1] ** -0.5) if len(shape) == 2 else (1.0, 0.2)
        tensors[weight] = mean + draw(weight, shape, deviation)
        tensors[bias] = draw(bias, shapes[f"{ours}.bias"], 0.1)
    torch.save({f"CrossFusionModule.0.{name}": tensor for name, tensor in tensors.items()}, path)
