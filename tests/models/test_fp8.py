"""8-bit weights: numbers of any size keep their few digits, and products are those of the numbers that are kept."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import gguf_files
import tiny
from llm4gen.models.checkpoints.adapter import load_cross_adapter
from llm4gen.models.checkpoints.fill import linear_weights
from llm4gen.models.encoders.linear import cast_fp8
from llm4gen.models.encoders.rows import distinct_rows, real_rows
from llm4gen.models.errors import IncompleteCheckpoint
from llm4gen.models.files.fp8 import cast
from llm4gen.models.files.values import is_finite
from llm4gen.models.llm import open_llm
from tiny import load_encoder, relative_error

FP8 = torch.float8_e4m3fn
PRODUCTS = [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 5e-3)]
IDS = torch.arange(3, 20)
QUERY = "t5_encoder.encoder.block.1.layer.0.SelfAttention.q"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 3, 4096])
def test_every_number_is_widened_as_torch_does(dtype, rows):
    codes = torch.arange(256, dtype=torch.uint8).view(FP8)
    codes = codes[codes.float().isfinite()].expand(rows, -1).contiguous()
    assert torch.equal(cast_fp8(codes, dtype), codes.to(dtype))


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e-2, 1.0, 300.0, 1e12])
def test_numbers_of_any_size_keep_their_digits(size):
    torch.manual_seed(0)
    values = torch.randn(64, 64) * size
    small, scale = cast(values, 1.0, FP8)
    assert relative_error(small.float() * scale, values) <= 3.5e-2
    assert torch.equal(cast(small, scale, torch.float32)[0], small.float() * scale)


def test_zeros_stay_zeros():
    assert cast(torch.zeros(2, 2), 1.0, FP8)[0].float().tolist() == [[0, 0], [0, 0]]


def rounded(oracle, encoder):
    """The oracle with the numbers that the encoder keeps."""
    kept = encoder.state_dict()
    for name in linear_weights(encoder):
        layer = encoder.get_submodule(name.removesuffix(".weight"))
        assert kept[name].dtype == FP8 and layer.scale != 1.0
        kept[name] = kept[name].float() * layer.scale
    return kept


@pytest.mark.parametrize(("product", "most"), PRODUCTS)
@torch.inference_mode()
def test_a_t5s_states_are_those_of_the_numbers_kept(product, most, tmp_path):
    save_file(tiny.rankgen_tensors(tiny.t5_encoder(num_layers=6)), tmp_path / "t5.safetensors")
    encoder = open_llm(tmp_path / "t5.safetensors").load(6, dtype=FP8)
    exact = load_encoder(tmp_path / "t5.safetensors")
    exact.load_state_dict(rounded(exact, encoder))
    rows = distinct_rows(len(IDS), 256)
    truth = exact(IDS, rows)
    assert relative_error(encoder(IDS, rows, compute_dtype=product), truth) <= most


@pytest.mark.parametrize(("product", "most"), PRODUCTS)
@torch.inference_mode()
def test_a_decoders_states_are_too_and_biases_are_not_scaled(product, most, tmp_path):
    gguf_files.make("Qwen2").save_pretrained(tmp_path)
    encoder = open_llm(tmp_path).load(3, dtype=FP8)
    exact = load_encoder(tmp_path)
    exact.load_state_dict(rounded(exact, encoder))
    rows = real_rows(len(IDS))
    assert relative_error(encoder(IDS, rows, compute_dtype=product), exact(IDS, rows)) <= most


@pytest.mark.parametrize("names", [("scale_weight", "scaled_fp8"), ("weight_scale", "comfy_quant")])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_comfyuis_scaled_files_are_read(names, dtype, tmp_path):
    tensors = tiny.rankgen_tensors(tiny.t5_encoder())
    scale = 0.37 * tensors[f"{QUERY}.weight"].abs().max().item() / 448
    small = (tensors[f"{QUERY}.weight"] / scale).to(FP8)
    plain = tensors | {f"{QUERY}.weight": small.float() * scale}
    scaled = tensors | {
        f"{QUERY}.weight": small,
        f"{QUERY}.{names[0]}": torch.tensor(scale),
        f"{QUERY}.scale_input": torch.tensor(1.0),
        "scaled_fp8" if names[1] == "scaled_fp8" else f"{QUERY}.{names[1]}": torch.zeros(2),
    }
    save_file(plain, tmp_path / "plain.safetensors")
    save_file(scaled, tmp_path / "scaled.safetensors")
    rows = distinct_rows(len(IDS), 64)
    found, truth = (
        load_encoder(tmp_path / f"{name}.safetensors", dtype=dtype, operations=tiny.CastingLayers)(IDS, rows)
        for name in ("scaled", "plain")
    )
    assert relative_error(found, truth) <= 1e-5


def test_scales_of_other_kinds_are_refused(tmp_path):
    tensors = tiny.rankgen_tensors(tiny.t5_encoder())
    tensors[f"{QUERY}.weight_scale"] = torch.ones(32)
    save_file(tensors, tmp_path / "t5.safetensors")
    with pytest.raises(IncompleteCheckpoint, match=r"unknown .*weight_scale"):
        load_encoder(tmp_path / "t5.safetensors")


def test_an_adapter_may_be_scaled_too(tmp_path):
    tensors = tiny.adapter_tensors()
    name = "CrossFusionModule.0.q_proj.weight"
    small, scale = cast(tensors[name], 1.0, FP8)
    save_file(tensors | {name: small.float() * scale}, tmp_path / "plain.safetensors")
    save_file(
        tensors | {name: small, name.replace("weight", "scale_weight"): torch.tensor(scale)},
        tmp_path / "scaled.safetensors",
    )
    plain, scaled = (
        load_cross_adapter(tmp_path / f"{kind}.safetensors")[0].state_dict() for kind in ("plain", "scaled")
    )
    assert all(torch.equal(scaled[name], tensor) for name, tensor in plain.items())
    assert load_file(tmp_path / "scaled.safetensors")[name].dtype == FP8


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_number_is_told_from_what_is_none(dtype):
    largest = torch.finfo(dtype).max
    for code in range(256):
        number = torch.tensor([code], dtype=torch.uint8).view(dtype)
        value = number.float().abs().item()
        pair = torch.cat([number.view(torch.uint8), torch.tensor([0x81, 0x01], dtype=torch.uint8)]).view(
            dtype
        )
        for found in (number, pair):
            assert is_finite(found, scaled=True) == (value <= largest), code
            assert is_finite(found) == (value < largest), code
