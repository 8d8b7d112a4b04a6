"""Files become models: every known spelling is recognised, and a damaged file is refused as a whole."""

import json
import pickle
import random
import re
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from llm4gen.models.checkpoints.adapter import load_cross_adapter, save_cross_adapter
from llm4gen.models.encoders.rows import all_rows
from llm4gen.models.errors import (
    IncompleteCheckpoint,
    LLM4GENError,
    UnknownCheckpoint,
    UnreadableFile,
    WrongRecipe,
)
from tiny import load_encoder

IDS = torch.tensor([5, 9, 300, 1])


def states(encoder):
    """The hidden states of the prompt, padded to 16 positions: [16, width]."""
    return encoder(IDS, all_rows(len(IDS), 16))


@pytest.fixture(scope="module")
def oracle():
    return tiny.t5_encoder()


@pytest.fixture(scope="module")
def expected(oracle):
    padded = torch.nn.functional.pad(IDS, (0, 12))[None]
    return oracle(input_ids=padded, attention_mask=(padded > 0).long()).last_hidden_state[0]


def tensors_spelled_as(spelling, oracle):
    """The oracle's weights, by the names that one kind of T5 file gives to them."""
    tensors = tiny.own_tensors(oracle)
    if spelling == "rankgen":
        return tiny.rankgen_tensors(oracle)
    if spelling == "rankgen with alias":
        embedding = tensors["shared.weight"].clone()
        return tiny.rankgen_tensors(oracle) | {"t5_encoder.encoder.embed_tokens.weight": embedding}
    if spelling == "alias alone":
        return {name.replace("shared", "encoder.embed_tokens"): tensor for name, tensor in tensors.items()}
    if spelling == "whole T5 v1.1":
        whole = tiny.own_tensors(tiny.whole_t5())
        return whole | {name: tensor for name, tensor in tensors.items() if name in whole}
    return tensors


@pytest.mark.parametrize(
    "spelling", ["rankgen", "rankgen with alias", "alias alone", "whole T5 v1.1", "encoder"]
)
def test_every_spelling_of_a_t5_encoder_loads(spelling, oracle, expected, tmp_path):
    save_file(tensors_spelled_as(spelling, oracle), tmp_path / "t5.safetensors")
    torch.testing.assert_close(states(load_encoder(tmp_path / "t5.safetensors")), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("suffix", [".bin", ".pth", ".pt"])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_pickle_of_tensors_loads(suffix, wrapped, zipped, oracle, expected, tmp_path):
    tensors, path = tiny.rankgen_tensors(oracle), tmp_path / f"t5{suffix}"
    torch.save({"state_dict": tensors} if wrapped else tensors, path, _use_new_zipfile_serialization=zipped)
    torch.testing.assert_close(states(load_encoder(path)), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_load_and_a_missing_one_is_named(suffix, oracle, expected, tmp_path):
    folder = tmp_path / "t5"
    tiny.save_shards(folder, tiny.rankgen_tensors(oracle), suffix)
    torch.testing.assert_close(states(load_encoder(folder)), expected, atol=2e-5, rtol=0)
    (folder / f"part-1.{suffix}").unlink()
    with pytest.raises(UnreadableFile, match=f"1 of 2 shards: part-1.{suffix}"):
        load_encoder(folder)


def test_shards_are_not_looked_for_outside_the_folder(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "t5"
    folder.mkdir()
    index = {"weight_map": {"x": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(UnreadableFile, match="1 of 1 shards"):
        load_encoder(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, None])
def test_weights_take_the_chosen_dtype_and_norms_stay_fp32(dtype, oracle, tmp_path):
    tensors = {name: tensor.bfloat16() for name, tensor in tiny.rankgen_tensors(oracle).items()}
    save_file(tensors, tmp_path / "t5.safetensors")
    encoder = load_encoder(tmp_path / "t5.safetensors", dtype=dtype)
    weight_dtype = dtype or torch.bfloat16
    assert encoder.blocks[0].attention.query.weight.dtype == weight_dtype
    assert encoder.embedding.weight.dtype == (torch.bfloat16 if weight_dtype.itemsize == 1 else weight_dtype)
    assert encoder.final_norm.weight.dtype == encoder.position_bias.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("file_dtype", "dtype"),
    [
        (torch.float64, torch.float32),
        (torch.float8_e5m2, torch.bfloat16),
        (torch.float8_e4m3fn, torch.float8_e4m3fn),
    ],
)
def test_a_files_dtype_is_kept_if_a_user_could_choose_it(file_dtype, dtype, oracle, tmp_path):
    tensors = {name: tensor.to(file_dtype) for name, tensor in tiny.rankgen_tensors(oracle).items()}
    save_file(tensors, tmp_path / "t5.safetensors")
    encoder = load_encoder(tmp_path / "t5.safetensors")
    assert encoder.blocks[0].mlp.up.weight.dtype == dtype
    assert encoder.embedding.weight.dtype.itemsize > 1


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(torch.float16, 1e5), (torch.float8_e4m3fn, float("inf")), (torch.float32, float("nan"))],
)
def test_values_that_the_chosen_dtype_cannot_hold_are_refused(dtype, value, oracle, tmp_path):
    tensors = tiny.rankgen_tensors(oracle)
    tensors["t5_encoder.encoder.block.0.layer.1.DenseReluDense.wo.weight"][0, 0] = value
    save_file(tensors, tmp_path / "t5.safetensors")
    with pytest.raises(IncompleteCheckpoint, match="do not fit the chosen dtype"):
        load_encoder(tmp_path / "t5.safetensors", dtype=dtype)


def damage_tensors(tensors, damage):
    """Damages the tensors of a model in place. Returns the words that the error must contain."""
    last = next(name for name in tensors if name.endswith((".wo.weight", "FFN.2.weight")))
    if damage == "missing":
        del tensors[last]
        return "lacks 1 tensor"
    if damage == "surplus":
        tensors["stray"] = torch.zeros(2)
        return "unknown 1 tensor .stray"
    if damage == "misshapen":
        tensors[last] = tensors[last][:-1].clone()
        return "instead of"
    tensors[last].view(-1)[3] = float(damage)
    return "NaN or infinite values in 1 tensor"


@pytest.mark.parametrize("damage", ["missing", "surplus", "misshapen", "nan", "-inf"])
@pytest.mark.parametrize("model", ["adapter", "encoder"])
def test_a_missing_surplus_misshapen_or_non_finite_tensor_is_refused(model, damage, oracle, tmp_path):
    tensors = tiny.adapter_tensors() if model == "adapter" else tiny.rankgen_tensors(oracle)
    message = damage_tensors(tensors, damage)
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(IncompleteCheckpoint, match=message):
        (load_cross_adapter if model == "adapter" else load_encoder)(tmp_path / "x.safetensors")


def test_a_gap_between_blocks_is_named(oracle, tmp_path):
    tensors = {
        name: tensor for name, tensor in tiny.rankgen_tensors(oracle).items() if ".block.1." not in name
    }
    save_file(tensors, tmp_path / "t5.safetensors")
    with pytest.raises(IncompleteCheckpoint, match=re.escape("block.1.layer.0")):
        load_encoder(tmp_path / "t5.safetensors")


def test_fp16_is_refused_for_weights_beyond_its_range(oracle, tmp_path):
    tensors = tiny.rankgen_tensors(oracle)
    tensors["t5_encoder.shared.weight"][0, 0] = 1e6
    save_file(tensors, tmp_path / "t5.safetensors")
    load_encoder(tmp_path / "t5.safetensors", dtype=torch.bfloat16)
    with pytest.raises(IncompleteCheckpoint, match="choose fp32"):
        load_encoder(tmp_path / "t5.safetensors", dtype=torch.float16)


def test_each_loader_refuses_the_other_models_file_and_says_what_it_found(oracle, tmp_path):
    save_file(tiny.adapter_tensors(), tmp_path / "adapter.safetensors")
    save_file(tiny.rankgen_tensors(oracle), tmp_path / "t5.safetensors")
    with pytest.raises(
        UnknownCheckpoint, match=r"adapter.safetensors does not hold a T5 encoder.*20 tensors"
    ):
        load_encoder(tmp_path / "adapter.safetensors")
    with pytest.raises(UnknownCheckpoint, match=r"t5.safetensors does not hold a Cross-Adapter.*32 tensors"):
        load_cross_adapter(tmp_path / "t5.safetensors")


def test_the_first_version_of_t5_is_refused_by_name(oracle, tmp_path):
    tensors = {
        name.replace("wi_0", "wi"): tensor
        for name, tensor in tiny.rankgen_tensors(oracle).items()
        if "wi_1" not in name
    }
    save_file(tensors, tmp_path / "t5.safetensors")
    with pytest.raises(UnknownCheckpoint, match="first version of T5"):
        load_encoder(tmp_path / "t5.safetensors")


def test_the_adapters_heads_come_from_its_metadata(tmp_path):
    save_file(tiny.adapter_tensors(), tmp_path / "a.safetensors", {"llm4gen": '{"heads": 4, "tokens": 99}'})
    adapter, recipe = load_cross_adapter(tmp_path / "a.safetensors")
    assert (adapter.config.heads, recipe.heads, recipe.tokens) == (4, 4, 99)
    save_file(tiny.adapter_tensors(), tmp_path / "b.safetensors", {"llm4gen": '{"heads": 5}'})
    with pytest.raises(WrongRecipe, match="64 wide, which 5 attention heads"):
        load_cross_adapter(tmp_path / "b.safetensors")


def test_a_saved_adapter_is_the_same_to_the_bit_under_the_published_names(tmp_path):
    save_file(tiny.adapter_tensors(), tmp_path / "a.safetensors", {"llm4gen": '{"heads": 4, "tokens": 99}'})
    adapter, recipe = load_cross_adapter(tmp_path / "a.safetensors")
    save_cross_adapter(adapter, recipe, tmp_path / "b.safetensors", {"llm4gen_training": "{}"})
    saved = load_file(tmp_path / "b.safetensors")
    assert saved.keys() == tiny.adapter_tensors().keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in tiny.adapter_tensors().items())
    assert load_cross_adapter(tmp_path / "b.safetensors")[1] == recipe


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(zipped, tmp_path):
    path, made_by_code = tmp_path / "evil.pth", tmp_path / "made_by_code"
    torch.save({"llm_proj.weight": tiny.Payload(made_by_code)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnreadableFile, match="Nothing was executed"):
        load_cross_adapter(path)
    assert not made_by_code.exists()
    torch.load(path, weights_only=False)["llm_proj.weight"].close()
    assert made_by_code.exists(), "the payload must run where code is allowed"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", b"", "empty"),
        ("a.pth", b"", "empty"),
        ("a.safetensors", b"\0<html>404</html>", "damaged"),
        ("a.pth", b"\0<html>404</html>", "refused|damaged"),
        ("a.pth", pickle.dumps([1, 2], protocol=2), "refused|damaged|not a dictionary"),
        ("a.txt", b"x", "is not a weight file"),
    ],
)
def test_a_file_that_is_not_a_weight_file_is_refused(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableFile, match=message):
        load_cross_adapter(tmp_path / name)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("share", [0.0001, 0.5, 0.999])
def test_a_file_that_was_cut_short_is_refused(suffix, share, tmp_path):
    path = tmp_path / f"a{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(tiny.adapter_tensors(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share) + 1])
    with pytest.raises(UnreadableFile, match=r"download it again|Get the file"):
        load_cross_adapter(path)


def test_a_pickle_of_other_things_than_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3, "weights": [torch.zeros(1)]}, tmp_path / "a.pth")
    with pytest.raises(UnreadableFile, match="dictionary of named tensors"):
        load_cross_adapter(tmp_path / "a.pth")


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_loading_reports_each_tensor_and_can_be_stopped(dtype, oracle, tmp_path):
    save_file(tiny.rankgen_tensors(oracle), tmp_path / "t5.safetensors")
    reports = []

    def progress(total):
        reports.append(total)
        return lambda: reports.append(1)

    load_encoder(tmp_path / "t5.safetensors", dtype=dtype, progress=progress)
    assert reports[0] == len(reports) - 1 == 30

    def stop(total):
        def step():
            raise KeyboardInterrupt

        return step

    with pytest.raises(KeyboardInterrupt):
        load_encoder(tmp_path / "t5.safetensors", dtype=dtype, progress=stop)


def save_unusual(tensors, path):
    """Saves tensors that no ordinary program would save as weights, so that the loader must refuse them."""
    torch.save(tensors, path)
    return path


@pytest.mark.filterwarnings("ignore")  # torch warns about some of these files
@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.to_sparse(),
        lambda t: t.to("meta"),
        lambda t: t.to(torch.complex64),
        lambda t: (t * 100).to(torch.int8),
    ],
    ids=["sparse", "meta", "complex", "int8"],
)
def test_tensors_that_are_not_plain_numbers_are_refused(change, tmp_path):
    tensors = {
        name: change(tensor) if "FFN.0.w" in name else tensor
        for name, tensor in tiny.adapter_tensors().items()
    }
    with pytest.raises(
        IncompleteCheckpoint,
        match=r"something other than plain numbers in 1 tensor \(CrossFusionModule.0.FFN.0.weight",
    ):
        load_cross_adapter(save_unusual(tensors, tmp_path / "a.pth"))


def test_tensor_names_that_are_not_text_are_refused(tmp_path):
    with pytest.raises(UnreadableFile, match="named tensors"):
        load_cross_adapter(save_unusual({0: torch.zeros(2)}, tmp_path / "a.pth"))


@pytest.mark.parametrize("heads", [0, 3])
@pytest.mark.parametrize("buckets", [2, 32])
def test_a_position_bias_that_cannot_be_a_t5s_is_refused(heads, buckets, oracle, tmp_path):
    tensors = tiny.rankgen_tensors(oracle)
    name = next(name for name in tensors if "relative_attention_bias" in name)
    tensors[name] = torch.zeros(buckets, heads)
    with pytest.raises(IncompleteCheckpoint, match=r"t5\.pth"):
        load_encoder(save_unusual(tensors, tmp_path / "t5.pth"))


def test_an_index_that_names_itself_is_refused(tmp_path):
    index = {"weight_map": {"x": "model.safetensors.index.json"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(UnreadableFile, match="shards that are not weight files"):
        load_encoder(tmp_path)


@pytest.mark.filterwarnings("ignore")  # torch warns about some of these files
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_bytes_in_a_pickle_give_a_typed_error_or_a_whole_model(zipped, tmp_path):
    path = tmp_path / "a.pth"
    torch.save(tiny.adapter_tensors(), path, _use_new_zipfile_serialization=zipped)
    original, generator = path.read_bytes(), random.Random(0)
    for _ in range(200):
        damaged = bytearray(original)
        for _ in range(8):
            damaged[generator.randrange(min(len(damaged), 6000))] = generator.randrange(256)
        path.write_bytes(damaged)
        with suppress(LLM4GENError):
            load_cross_adapter(path)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ('{"feed_forward_proj": "gated-silu"}', UnknownCheckpoint),
        ('{"relative_attention_max_distance": 256}', UnknownCheckpoint),
        ("{", UnreadableFile),
        ("", UnreadableFile),
        ("[]", UnreadableFile),
    ],
)
def test_a_folder_whose_config_describes_another_t5_is_refused(config, error, oracle, tmp_path):
    save_file(tiny.rankgen_tensors(oracle), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"feed_forward_proj": "gated-gelu"}', encoding="utf-8")
    load_encoder(tmp_path)
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(error, match=r"another kind of T5|damaged"):
        load_encoder(tmp_path)
