"""fp8 weights: numbers of any size keep their few digits, and products are those of the rounded weights."""

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
COMPUTE_DTYPES = [  # with the largest relative error
    (torch.float32, 1e-5),
    (torch.bfloat16, 2e-2),
    (torch.float16, 5e-3),
]
IDS = torch.arange(3, 20)
QUERY = "t5_encoder.encoder.block.1.layer.0.SelfAttention.q"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 3, 4096])
def test_every_fp8_number_is_cast_as_torch_casts_it(dtype, rows):
    codes = torch.arange(256, dtype=torch.uint8).view(FP8)
    codes = codes[codes.float().isfinite()].expand(rows, -1).contiguous()
    assert torch.equal(cast_fp8(codes, dtype), codes.to(dtype))


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1e-2, 1.0, 300.0, 1e12])
def test_numbers_of_any_size_keep_their_digits(size):
    torch.manual_seed(0)
    values = torch.randn(64, 64) * size
    scaled, scale = cast(values, 1.0, FP8)
    assert relative_error(scaled.float() * scale, values) <= 3.5e-2
    assert torch.equal(cast(scaled, scale, torch.float32)[0], scaled.float() * scale)


def test_zeros_stay_zeros():
    assert cast(torch.zeros(2, 2), 1.0, FP8)[0].float().tolist() == [[0, 0], [0, 0]]


def dequantised(encoder):
    """The state dict of an fp8 encoder, with its scaled weights multiplied out in fp32."""
    state = encoder.state_dict()
    for name in linear_weights(encoder):
        layer = encoder.get_submodule(name.removesuffix(".weight"))
        assert state[name].dtype == FP8 and layer.scale != 1.0
        state[name] = state[name].float() * layer.scale
    return state


@pytest.mark.parametrize(("compute_dtype", "bound"), COMPUTE_DTYPES)
@torch.inference_mode()
def test_states_of_a_t5_equal_those_of_its_dequantised_weights(compute_dtype, bound, tmp_path):
    save_file(tiny.rankgen_tensors(tiny.t5_encoder(num_layers=6)), tmp_path / "t5.safetensors")
    encoder = open_llm(tmp_path / "t5.safetensors").load(6, dtype=FP8)
    exact = load_encoder(tmp_path / "t5.safetensors")
    exact.load_state_dict(dequantised(encoder))
    rows = distinct_rows(len(IDS), 256)
    expected = exact(IDS, rows)
    assert relative_error(encoder(IDS, rows, compute_dtype=compute_dtype), expected) <= bound


@pytest.mark.parametrize(("compute_dtype", "bound"), COMPUTE_DTYPES)
@torch.inference_mode()
def test_states_of_a_decoder_with_biases_equal_those_of_its_dequantised_weights(
    compute_dtype, bound, tmp_path
):
    gguf_files.make("Qwen2").save_pretrained(tmp_path)
    encoder = open_llm(tmp_path).load(3, dtype=FP8)
    exact = load_encoder(tmp_path)
    exact.load_state_dict(dequantised(encoder))
    rows = real_rows(len(IDS))
    expected = exact(IDS, rows)
    assert relative_error(encoder(IDS, rows, compute_dtype=compute_dtype), expected) <= bound


@pytest.mark.parametrize(
    ("scale_name", "marker"), [("scale_weight", "scaled_fp8"), ("weight_scale", "comfy_quant")]
)
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_comfyuis_scaled_fp8_files_are_read(scale_name, marker, dtype, tmp_path):
    tensors = tiny.rankgen_tensors(tiny.t5_encoder())
    scale = 0.37 * tensors[f"{QUERY}.weight"].abs().max().item() / 448
    weight = (tensors[f"{QUERY}.weight"] / scale).to(FP8)
    plain = tensors | {f"{QUERY}.weight": weight.float() * scale}
    scaled = tensors | {
        f"{QUERY}.weight": weight,
        f"{QUERY}.{scale_name}": torch.tensor(scale),
        f"{QUERY}.scale_input": torch.tensor(1.0),
        marker if marker == "scaled_fp8" else f"{QUERY}.{marker}": torch.zeros(2),
    }
    save_file(plain, tmp_path / "plain.safetensors")
    save_file(scaled, tmp_path / "scaled.safetensors")
    rows = distinct_rows(len(IDS), 64)
    found, expected = (
        load_encoder(tmp_path / f"{name}.safetensors", dtype=dtype, operations=tiny.CastingLayers)(IDS, rows)
        for name in ("scaled", "plain")
    )
    assert relative_error(found, expected) <= 1e-5


def test_a_scale_may_lie_in_another_shard_than_its_weight(tmp_path):
    tensors = tiny.rankgen_tensors(tiny.t5_encoder())
    weight, scale = cast(tensors[f"{QUERY}.weight"], 1.0, FP8)
    scaled = tensors | {f"{QUERY}.weight": weight, f"{QUERY}.weight_scale": torch.tensor(scale)}
    tiny.save_shards(tmp_path / "t5", scaled, "safetensors")
    part = load_file(tmp_path / "t5" / "part-0.safetensors")
    assert (f"{QUERY}.weight" in part) != (f"{QUERY}.weight_scale" in part)
    save_file(tensors | {f"{QUERY}.weight": weight.float() * scale}, tmp_path / "plain.safetensors")
    found, expected = (
        load_encoder(tmp_path / name, dtype=torch.float32).state_dict()
        for name in ("t5", "plain.safetensors")
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_scale_for_each_row_is_refused(tmp_path):
    tensors = tiny.rankgen_tensors(tiny.t5_encoder())
    tensors[f"{QUERY}.weight_scale"] = torch.ones(32)
    save_file(tensors, tmp_path / "t5.safetensors")
    with pytest.raises(IncompleteCheckpoint, match=r"unknown .*weight_scale"):
        load_encoder(tmp_path / "t5.safetensors")


def test_a_scaled_fp8_adapter_is_read(tmp_path):
    tensors = tiny.adapter_tensors()
    name = "CrossFusionModule.0.q_proj.weight"
    weight, scale = cast(tensors[name], 1.0, FP8)
    save_file(tensors | {name: weight.float() * scale}, tmp_path / "plain.safetensors")
    save_file(
        tensors | {name: weight, name.replace("weight", "scale_weight"): torch.tensor(scale)},
        tmp_path / "scaled.safetensors",
    )
    plain, scaled = (
        load_cross_adapter(tmp_path / f"{kind}.safetensors")[0].state_dict() for kind in ("plain", "scaled")
    )
    assert all(torch.equal(scaled[name], tensor) for name, tensor in plain.items())
    assert load_file(tmp_path / "scaled.safetensors")[name].dtype == FP8


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_code_is_recognised_as_finite_or_not(dtype):
    largest = torch.finfo(dtype).max
    for code in range(256):
        alone = torch.tensor([code], dtype=torch.uint8)
        among_others = torch.cat([alone, torch.tensor([0x81, 0x01], dtype=torch.uint8)])
        value = alone.view(dtype).float().abs().item()
        for codes in (alone, among_others):
            assert is_finite(codes.view(dtype), scaled=True) == (value <= largest), code
            assert is_finite(codes.view(dtype)) == (value < largest), code
