"""tools/convert.py: a converted file is the same model, with its names, values, tokenizer and recipe."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import convert
import tiny
from files.safetensors_writer import Outline, write_tensors
from llm4gen.models.checkpoints.adapter import load_cross_adapter
from llm4gen.models.files import weights
from llm4gen.models.files.fp8 import split_scales
from llm4gen.models.files.values import DTYPES
from paths import GOLDEN
from tiny import load_encoder

QUERY = "t5_encoder.encoder.block.1.layer.0.SelfAttention.q.weight"
UNUSED = {"projection.weight", "t5_encoder.encoder.embed_tokens.weight"}
UP = "CrossFusionModule.0.FFN.0.weight"


def run(*arguments):
    return convert.main([str(argument) for argument in arguments])


def refusal(capsys, *arguments):
    """The error of a failed run: one line, with exit code 1."""
    assert run(*arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def metadata(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.fixture(scope="module")
def tensors():
    return tiny.rankgen_tensors(tiny.t5_encoder())


def save_source(kind, tensors, folder):
    """Saves an encoder in one of SOURCE_KINDS ("golden" is another encoder). Returns its path and its tensors."""
    if kind == "golden":
        golden = load_file(GOLDEN / "rankgen.safetensors")
        tensors = {name[8:]: tensor for name, tensor in golden.items() if name.startswith("weights.")}
    if kind.startswith("shards"):
        tiny.save_shards(folder / "t5", tensors, kind.split()[1])
        (folder / "t5" / "config.json").write_text('{"feed_forward_proj": "gated-gelu"}', encoding="utf-8")
        return folder / "t5", tensors
    if kind in ("golden", "safetensors", "bf16 safetensors"):
        if kind.startswith("bf16"):
            tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
        save_file(tensors, folder / "t5.safetensors")
        return folder / "t5.safetensors", tensors
    if kind == "transposed pickle":
        torch.save(
            {name: tensor.mT.clone().mT if tensor.ndim == 2 else tensor for name, tensor in tensors.items()},
            folder / "t5.bin",
        )
    elif kind == "wrapped pickle":
        torch.save({"state_dict": tensors}, folder / "t5.bin")
    elif kind == "training checkpoint":
        optimizer = {"state": {0: {"exp_avg": torch.ones(9)}}, "param_groups": [{"lr": 1e-4}]}
        torch.save({"epoch": 3, "model": tensors, "optimizer": optimizer}, folder / "t5.bin")
    else:
        torch.save(tensors, folder / "t5.bin", _use_new_zipfile_serialization=kind != "old pickle")
    return folder / "t5.bin", tensors


SOURCE_KINDS = (
    "pickle",
    "old pickle",
    "wrapped pickle",
    "training checkpoint",
    "transposed pickle",
    "safetensors",
    "bf16 safetensors",
    "shards safetensors",
    "shards bin",
    "golden",
)


@pytest.mark.parametrize("kind", SOURCE_KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_converted_encoder_has_the_weights_of_its_source(kind, dtype, tensors, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "CHUNK_BYTES", 1 << 16)  # so that tensors are read in many chunks
    source, originals = save_source(kind, tensors, tmp_path)
    assert run(source, tmp_path / "new.safetensors", "--dtype", dtype) == 0
    new, scales = split_scales(load_file(tmp_path / "new.safetensors"))
    assert new.keys() == originals.keys() - UNUSED
    assert scales.keys() == {name for name, tensor in new.items() if tensor.dtype.itemsize == 1}
    for name, tensor in new.items():
        scale = scales.get(name, 1.0)
        assert torch.equal(tensor, (originals[name] / scale).to(tensor.dtype)), name
        assert scale == 1.0 or 112 <= tensor.float().abs().max() <= 224
    converted = load_encoder(tmp_path / "new.safetensors", dtype=torch.float32).state_dict()
    direct = load_encoder(source, dtype=DTYPES[dtype])
    for name, tensor in direct.state_dict().items():
        scale = getattr(direct.get_submodule(name.rpartition(".")[0]), "scale", 1.0)
        assert torch.equal(converted[name], tensor.float() * scale), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_linear_weights_and_the_embedding_get_the_chosen_dtype(dtype, tensors, tmp_path):
    source, _ = save_source("safetensors", tensors, tmp_path)
    run(source, tmp_path / "new.safetensors", "--dtype", dtype)
    chosen = DTYPES[dtype]
    for name, tensor in load_file(tmp_path / "new.safetensors").items():
        is_linear = "layer_norm" not in name and "relative_attention_bias" not in name and "scale" not in name
        if "shared" in name:
            assert tensor.dtype == (torch.bfloat16 if dtype == "fp8" else chosen)
        else:
            assert tensor.dtype == (chosen if is_linear else torch.float32), name


def test_the_metadata_and_the_output_name_the_source(tensors, tmp_path, capsys):
    source, _ = save_source("pickle", tensors, tmp_path)
    assert run(source) == 0
    target = tmp_path / "t5-bf16.safetensors"
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (source, target)]
    entries = metadata(target)
    assert (entries["format"], entries["dtype"], entries["source"]) == ("pt", "bf16", "t5.bin")
    assert entries["source_sha256"] == sums[0]
    assert entries["tokenizer"] == "ComfyUI's T5 tokenizer"
    assert entries["converter"].endswith(str(convert.VERSION))
    output = capsys.readouterr().out
    assert "T5 encoder, 3 layers of width 32" in output and "projection.weight" in output
    assert sums[1] in output and f"{target.stat().st_size:,} bytes" in output


def test_an_encoders_own_tokenizer_is_named(tensors, tmp_path, capsys):
    source, _ = save_source("shards bin", tensors, tmp_path)
    (source / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert run(source) == 0
    entries = metadata(tmp_path / "t5-bf16.safetensors")
    assert entries["tokenizer"] == "t5/tokenizer.json"
    assert f"tokenizer files of {source}" in capsys.readouterr().out
    shards = [source / f"part-{index}.bin" for index in (0, 1)]
    lines = [f"{hashlib.sha256(shard.read_bytes()).hexdigest()}  {shard.name}" for shard in shards]
    assert entries["source_sha256"].splitlines() == lines


def test_a_converted_adapter_has_the_published_weights_and_recipe(tmp_path):
    torch.save(tiny.adapter_tensors(), tmp_path / "projector.pth")
    assert run(tmp_path / "projector.pth") == 0
    old, recipe = load_cross_adapter(tmp_path / "projector.pth")
    new, new_recipe = load_cross_adapter(tmp_path / "projector-fp32.safetensors")
    assert new_recipe == recipe
    assert json.loads(metadata(tmp_path / "projector-fp32.safetensors")["llm4gen"])["heads"] == recipe.heads
    for name, tensor in old.state_dict().items():
        assert torch.equal(new.state_dict()[name], tensor), name


@pytest.mark.parametrize("file_dtype", [torch.float32, torch.bfloat16])
def test_an_adapter_keeps_its_own_recipe_dtype_and_training(file_dtype, tmp_path):
    source = tmp_path / "a.safetensors"
    own = {
        "llm4gen": '{"heads": 4, "tokens": 99, "template": "<{text}>"}',
        "llm4gen_training": '{"steps": 9}',
    }
    save_file({name: tensor.to(file_dtype) for name, tensor in tiny.adapter_tensors().items()}, source, own)
    assert run(source, tmp_path / "b.safetensors") == 0
    assert load_file(tmp_path / "b.safetensors")[UP].dtype == file_dtype
    assert load_cross_adapter(tmp_path / "b.safetensors")[1] == load_cross_adapter(source)[1]
    assert run(source, tmp_path / "c.safetensors", "--dtype", "fp16") == 0
    assert load_file(tmp_path / "c.safetensors")[UP].dtype == torch.float16
    assert json.loads(metadata(tmp_path / "c.safetensors")["llm4gen_training"]) == {"steps": 9}


@pytest.mark.parametrize(
    ("dtype", "value", "reason"),
    [
        ("fp16", 65505.0, "Choose bf16"),
        ("fp16", -1e6, "Choose bf16"),
        ("bf16", 3.4e38, "Choose fp32"),
        ("fp32", 1e300, "None of the dtypes"),
        ("fp8", 1e300, "None of the dtypes"),
        *((dtype, value, "NaN or infinite") for dtype in DTYPES for value in (float("nan"), -float("inf"))),
    ],
)
def test_values_that_do_not_fit_are_refused_with_the_tensors_name(
    dtype, value, reason, tensors, tmp_path, capsys
):
    changed = {name: tensor.clone() for name, tensor in tensors.items()}
    changed[QUERY] = changed[QUERY].to(torch.float64 if value == 1e300 else torch.float32)
    changed[QUERY][3, 5] = value
    save_file(changed, tmp_path / "t5.safetensors")
    message = refusal(capsys, tmp_path / "t5.safetensors", "--dtype", dtype)
    assert QUERY in message and reason in message
    assert [path.name for path in tmp_path.iterdir()] == ["t5.safetensors"]


@pytest.mark.parametrize(("dtype", "largest"), [("fp16", 65504.0), ("fp8", 2.0**120)])
def test_the_largest_value_of_a_dtype_still_fits(dtype, largest, tensors, tmp_path):
    changed = tensors | {QUERY: torch.full_like(tensors[QUERY], -largest)}
    save_file(changed, tmp_path / "t5.safetensors")
    assert run(tmp_path / "t5.safetensors", tmp_path / "new.safetensors", "--dtype", dtype) == 0
    new, scales = split_scales(load_file(tmp_path / "new.safetensors"))
    assert (new[QUERY].float() * scales.get(QUERY, 1.0)).unique().tolist() == [-largest]


def test_an_existing_file_is_replaced_only_with_force(tensors, tmp_path, capsys):
    source, _ = save_source("safetensors", tensors, tmp_path)
    target = tmp_path / "new.safetensors"
    target.write_bytes(b"existing")
    assert "--force" in refusal(capsys, source, target)
    assert target.read_bytes() == b"existing"
    assert run(source, target, "--force") == 0
    load_encoder(target)
    before = source.read_bytes()
    assert "source itself" in refusal(capsys, source, source, "--force")
    assert source.read_bytes() == before


def test_no_shard_of_the_source_is_replaced(tensors, tmp_path, capsys):
    source, _ = save_source("shards safetensors", tensors, tmp_path)
    shard = source / "part-0.safetensors"
    before = shard.read_bytes()
    assert "source itself" in refusal(capsys, source, shard, "--force")
    assert shard.read_bytes() == before


def test_the_default_target_is_beside_the_path_that_was_given(tensors, tmp_path, monkeypatch):
    source, _ = save_source("shards safetensors", tensors, tmp_path)
    (tmp_path / "named").mkdir()
    (tmp_path / "named" / "rankgen").symlink_to(source, target_is_directory=True)
    assert run(tmp_path / "named" / "rankgen") == 0
    assert (tmp_path / "named" / "rankgen-bf16.safetensors").is_file()
    monkeypatch.chdir(source)
    assert run(".") == 0
    assert (tmp_path / "t5-bf16.safetensors").is_file()


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("missing.bin", "new.safetensors", "does not exist"),
        ("t5.safetensors", "new.bin", "must end in .safetensors"),
        ("t5.safetensors", "no/new.safetensors", "does not exist. Make it first"),
        ("other.safetensors", "new.safetensors", "neither a T5 encoder"),
        ("incomplete.safetensors", "new.safetensors", "lacks 1 tensor"),
    ],
)
def test_a_wrong_source_or_target_is_refused_in_one_line(source, target, message, tensors, tmp_path, capsys):
    save_source("safetensors", tensors, tmp_path)
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if name != QUERY},
        tmp_path / "incomplete.safetensors",
    )
    before = sorted(tmp_path.iterdir())
    assert message in refusal(capsys, tmp_path / source, tmp_path / target)
    assert sorted(tmp_path.iterdir()) == before


def test_safetensors_loads_the_files_of_our_writer(tmp_path):
    values = {
        "odd": torch.arange(3).to(torch.float8_e4m3fn),
        "ä": torch.randn(5, 3).bfloat16(),
        "one": torch.randn(1, 1),
        "half": torch.randn(7).half(),
    }
    outline = Outline({name: (t.dtype, tuple(t.shape)) for name, t in values.items()}, {"a": 'b"'})
    with (tmp_path / "x.safetensors").open("wb") as file:
        write_tensors(file.write, outline, ((name, values[name]) for name in outline.names()))
    data = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0 and len(data) == outline.size()
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % values[name].itemsize == 0
    assert metadata(tmp_path / "x.safetensors") == {"a": 'b"'}
    for name, tensor in load_file(tmp_path / "x.safetensors").items():
        assert tensor.dtype == values[name].dtype and torch.equal(tensor.float(), values[name].float())
