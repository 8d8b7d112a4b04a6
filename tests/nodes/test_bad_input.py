"""Bad files and wrong connections give a helpful error of their own type, and the server runs the next workflow."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import in_process
import tiny
from sandbox.client import Client, ExecutionError
from sandbox.model_choice import make_standins
from sandbox.server import Server
from sandbox.standins import ADAPTER, CHECKPOINT, ENCODER


@pytest.fixture(scope="module")
def models(module_path):
    """A models directory for bad files. Only this module's server lists it, so they cannot disturb other tests."""
    return module_path


@pytest.fixture(scope="module")
def client(host, models, tmp_path_factory):
    with Server(host, tmp_path_factory.mktemp("bad-server"), [make_standins(host), models]) as server:
        yield Client(server.url)


@pytest.fixture(scope="module")
def t5():
    """Tensors of a small encoder under RankGen's names, with T5's vocabulary."""
    return tiny.rankgen_tensors(tiny.t5_encoder())


@pytest.fixture
def fails(client):
    """Runs a workflow that must fail, checks that the server still works, and returns the error."""
    rounds = iter(range(1, 1000))

    def fails(prompt):
        with pytest.raises(ExecutionError) as caught:
            client.run(prompt)
        good_prompt = {
            "1": {
                "class_type": "EmptyLatentImage",
                "inputs": {"width": 64, "height": 64, "batch_size": next(rounds)},
            },
            "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
        }
        assert client.run(good_prompt)["2"]
        return caught.value

    return fails


def prompt_of(node, **inputs):
    """A workflow in the API's format that runs one node."""
    return {
        "1": {"class_type": node, "inputs": inputs},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }


def load_adapter(name):
    return prompt_of("LLM4GEN_LoadCrossAdapter", adapter_name=name)


def load_encoder(name):
    return prompt_of("LLM4GEN_LoadLLMEncoder", encoder_name=name, dtype="auto", device="default")


def conditioning(adapter=ADAPTER, encoder=ENCODER, clip=None):
    clip = clip or {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}}
    slot = 1 if clip["class_type"] == "CheckpointLoaderSimple" else 0
    return {
        "1": clip,
        "2": {
            "class_type": "LLM4GEN_LoadLLMEncoder",
            "inputs": {"encoder_name": encoder, "dtype": "auto", "device": "cpu"},
        },
        "3": {"class_type": "LLM4GEN_LoadCrossAdapter", "inputs": {"adapter_name": adapter}},
        "4": {
            "class_type": "LLM4GEN_Conditioning",
            "inputs": {"clip": ["1", slot], "llm": ["2", 0], "adapter": ["3", 0], "text": "a cat"},
        },
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["4", 0]}},
    }


def assert_says(error, kind, *phrases):
    assert error.exception_type.split(".")[-1] == kind, error
    assert [phrase for phrase in phrases if phrase not in error.exception_message] == [], error


@pytest.fixture
def adapters(models):
    folder = models / "llm4gen"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def encoders(models):
    folder = models / "text_encoders"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.floor
def test_a_file_that_is_not_an_adapter_is_refused(fails, adapters, t5):
    save_file(t5, adapters / "t5.safetensors")
    assert_says(
        fails(load_adapter("t5.safetensors")),
        "UnknownCheckpoint", "t5.safetensors", "no llm_proj.weight", "32 tensors", "projector.pth in models/llm4gen",
    )  # fmt: skip


def test_a_file_that_is_not_an_encoder_is_refused(fails, encoders):
    save_file(tiny.adapter_tensors(), encoders / "adapter.safetensors")
    assert_says(
        fails(load_encoder("adapter.safetensors")),
        "UnknownCheckpoint", "adapter.safetensors", "does not hold a T5 encoder", "20 tensors", "models/text_encoders",
    )  # fmt: skip


@pytest.mark.floor
def test_an_adapter_for_another_llm_width_is_refused(fails, adapters):
    tensors = tiny.adapter_tensors(clip=768, llm=1024)
    save_file(tensors, adapters / "narrow.safetensors")
    error = fails(conditioning(adapter="narrow.safetensors"))
    assert_says(
        error, "WidthMismatch", "2048", "1024", "Load the LLM that the adapter was trained with (the pub"
    )
    training = {"llm4gen_training": json.dumps({"llm": {"name": "SmolLM2"}})}
    save_file(tensors, adapters / "own.safetensors", metadata=training)
    error = fails(conditioning(adapter="own.safetensors"))
    assert_says(error, "WidthMismatch", "Load the LLM that the adapter was trained with (SmolLM2).")


def test_an_encoder_of_another_width_is_refused(fails, encoders, t5):
    save_file(t5, encoders / "small.safetensors")
    assert_says(fails(conditioning(encoder="small.safetensors")), "WidthMismatch", "32", "2048")


def test_an_adapter_for_another_clip_width_is_refused(fails, adapters):
    save_file(tiny.adapter_tensors(clip=64, llm=2048), adapters / "clip64.safetensors")
    assert_says(fails(conditioning(adapter="clip64.safetensors")), "WidthMismatch", "768", "64")


@pytest.mark.parametrize(
    ("tensors", "clip_type", "encoder", "width"),
    [
        ({"text_model.encoder.layers.30.mlp.fc1.weight": (5120, 1280)}, "stable_diffusion", "g + l", 1280),
        ({"encoder.block.0.layer.0.SelfAttention.k.weight": (768, 768)}, "stable_audio", "t5base", 768),
    ],
    ids=["SDXL", "T5"],
)
def test_a_clip_of_another_model_than_sd15_is_refused(tensors, clip_type, encoder, width, fails, encoders):
    """ComfyUI recognises the CLIP by one tensor. The other weights stay uninitialised: only the width matters."""
    save_file(
        {name: torch.zeros(shape) for name, shape in tensors.items()}, encoders / f"{encoder}.safetensors"
    )
    loader = {
        "class_type": "CLIPLoader",
        "inputs": {"clip_name": f"{encoder}.safetensors", "type": clip_type},
    }
    error = fails(conditioning(clip=loader))
    assert_says(
        error,
        "WidthMismatch",
        f"({encoder})",
        str(width),
        "SD1.5's CLIP, 768 wide",
        "Connect the CLIP of a checkpoint of that kind",
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("size", [0, 5000], ids=["zero-byte", "truncated"])
def test_a_truncated_or_empty_file_is_refused(suffix, size, fails, adapters):
    path = adapters / f"short{size}{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(tiny.adapter_tensors(), path)
    path.write_bytes(path.read_bytes()[:size])
    assert_says(fails(load_adapter(path.name)), "UnreadableFile", path.name, "ownload it again")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4917893319\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (POINTER, ("pointer of Git LFS", "4,917,893,319 bytes", "git lfs pull")),
        (
            "<!doctype html><title>Sign in</title>",
            ("a web page", "<!doctype html>", "download the file again"),
        ),
        (
            "Access to this model is restricted.",
            ("a text of 35 bytes", "Access to this model", "accept a licence"),
        ),
    ],
)
@pytest.mark.parametrize("load", [load_adapter, load_encoder])
def test_a_text_in_place_of_a_file_is_named(load, text, said, fails, adapters, encoders):
    for folder in (adapters, encoders):
        (folder / "text.bin").write_text(text, encoding="utf-8")
    assert_says(fails(load("text.bin")), "UnreadableFile", "text.bin", *said)


@pytest.mark.floor
@pytest.mark.parametrize("load", [load_adapter, load_encoder])
def test_code_in_a_pickle_is_not_executed(load, fails, adapters, encoders, tmp_path):
    proof = tmp_path / "proof"
    for folder in (adapters, encoders):
        torch.save({"llm_proj.weight": tiny.Payload(proof)}, folder / "evil.pth")
    assert_says(fails(load("evil.pth")), "UnreadableFile", "evil.pth", "Nothing was executed")
    assert not proof.exists()
    torch.load(adapters / "evil.pth", weights_only=False)["llm_proj.weight"].close()
    assert proof.exists(), "the payload does nothing, so this test proves nothing"


DAMAGES = {
    "missing": lambda tensors, name: tensors.pop(name),
    "surplus": lambda tensors, name: tensors.update(stray=torch.zeros(1)),
    "nan": lambda tensors, name: tensors[name].view(-1)[:1].fill_(torch.nan),
}
MESSAGES = {
    "missing": "lacks 1 tensor",
    "surplus": "1 tensor (stray)",
    "nan": "NaN or infinite values in 1 tensor",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("load", [load_adapter, load_encoder])
def test_missing_surplus_and_nan_weights_are_refused(load, damage, fails, adapters, encoders, t5):
    is_adapter = load is load_adapter
    tensors = tiny.adapter_tensors() if is_adapter else {name: tensor.clone() for name, tensor in t5.items()}
    name = "CrossFusionModule.0.FFN.0.bias" if is_adapter else "t5_encoder.encoder.final_layer_norm.weight"
    DAMAGES[damage](tensors, name)
    save_file(tensors, (adapters if is_adapter else encoders) / f"{damage}.safetensors")
    prompt = load(f"{damage}.safetensors")
    if damage == "nan" and not is_adapter:  # an encoder's values are read with the first text
        save_file(tiny.adapter_tensors(clip=768, llm=32), adapters / "fitting.safetensors")
        prompt = conditioning("fitting.safetensors", f"{damage}.safetensors")
    assert_says(fails(prompt), "IncompleteCheckpoint", f"{damage}.safetensors", MESSAGES[damage])


def test_a_truncated_encoder_is_refused(fails, encoders, t5):
    path = encoders / "short.bin"
    torch.save(t5, path)
    path.write_bytes(path.read_bytes()[:-5000])
    assert_says(fails(load_encoder(path.name)), "UnreadableFile", path.name, "ownload it again")


def test_a_damaged_tokenizer_in_an_encoders_folder_is_refused(fails, encoders, t5):
    folder = encoders / "damaged-tokenizer"
    folder.mkdir(exist_ok=True)
    save_file(t5, folder / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}" if name == "config.json" else '{"version"', encoding="utf-8")
    error = fails(load_encoder("damaged-tokenizer"))
    assert_says(error, "MissingTokenizer", "cannot be read", "ComfyUI's own T5 tokenizer")


def save_t5(encoders, name, **sizes):
    save_file(tiny.rankgen_tensors(tiny.t5_encoder(d_model=8, d_ff=16, **sizes)), encoders / name)
    return name


def save_one_shard(encoders, t5):
    name = "model-00001-of-00002.safetensors"
    save_file(dict(list(t5.items())[:20]), encoders / name)
    return name


def save_quantised(encoders, t5):
    names = [name for name in t5 if "SelfAttention.q." in name]
    codes = {name.replace("weight", "qweight"): torch.ones(4, 32, dtype=torch.int32) for name in names}
    groups = {name.replace("weight", "g_idx"): torch.ones(32, dtype=torch.int32) for name in names}
    rest = {name: tensor for name, tensor in t5.items() if name not in names}
    save_file(rest | codes | groups, encoders / "gptq.safetensors")
    return "gptq.safetensors"


def save_clip(encoders, t5):
    save_file(
        {"text_model.encoder.layers.0.self_attn.q_proj.weight": torch.ones(2, 2)}, encoders / "l.safetensors"
    )
    return "l.safetensors"


@pytest.mark.parametrize(
    ("save", "kind", "phrases"),
    [
        (
            save_one_shard,
            "UnknownCheckpoint",
            ("part 1 of 2", "a part alone", ".index.json", "choose that folder"),
        ),
        (save_quantised, "UnknownCheckpoint", ("quantised with GPTQ", "q.g_idx", "in bf16, fp16 or fp32")),
        (save_clip, "UnknownCheckpoint", ("CLIP's text encoder", "rankgen-t5-xl-all")),
        (
            lambda encoders, _: save_t5(encoders, "mt5.safetensors", vocab_size=250112),
            "MissingTokenizer",
            ("mt5.safetensors is mt5", "another tokenizer than T5", "tokenizer.json", "spiece.model"),
        ),
        (
            lambda encoders, _: save_t5(encoders, "byt5.safetensors", vocab_size=384),
            "MissingTokenizer",
            ("is byt5", "byt5 reads bytes", "cannot be used"),
        ),
    ],
    ids=["one shard", "quantised", "CLIP", "mT5", "ByT5"],
)
def test_a_published_encoder_that_cannot_be_used_says_what_it_is(save, kind, phrases, fails, encoders, t5):
    error = fails(load_encoder(save(encoders, t5)))
    assert_says(error, kind, *phrases)
    assert "damaged" not in error.exception_message


def test_a_training_checkpoint_is_loaded_beside_its_optimizers_state(client, adapters):
    state = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    torch.save({"model": tiny.adapter_tensors(), "optimizer": state, "step": 9}, adapters / "trained.pth")
    assert client.run(load_adapter("trained.pth"))["2"]


def test_a_checkpoint_without_clip_is_refused(fails, models):
    """ComfyUI's loader gives None as its CLIP."""
    checkpoint = load_file(in_process.standins() / "checkpoints" / CHECKPOINT)
    unet = {name: tensor for name, tensor in checkpoint.items() if name.startswith("model.diffusion_model.")}
    (models / "checkpoints").mkdir(exist_ok=True)
    save_file(unet, models / "checkpoints" / "unet.safetensors")
    loader = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "unet.safetensors"}}
    assert_says(fails(conditioning(clip=loader)), "MissingCLIP", "the checkpoint holds none", "Load CLIP")


def test_a_new_file_is_offered_without_a_restart(client, adapters):
    save_file(tiny.adapter_tensors(), adapters / "new.safetensors")
    info = client.object_info()["LLM4GEN_LoadCrossAdapter"]
    assert "new.safetensors" in info["input"]["required"]["adapter_name"][1]["options"]


def test_an_encoder_with_another_vocabulary_needs_its_own_tokenizer(fails, encoders):
    folder = encoders / "other-vocabulary"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}), encoding="utf-8")
    save_file(tiny.rankgen_tensors(tiny.t5_encoder(vocab_size=4000)), folder / "model.safetensors")
    assert_says(
        fails(load_encoder("other-vocabulary")), "MissingTokenizer", "32100", "4000", "tokenizer files"
    )


@pytest.mark.floor
@pytest.mark.parametrize(
    "name", ["../secret.pth", "..\\secret.pth", "sub/../../secret.pth", "{absolute}", "", "\0"]
)
@pytest.mark.parametrize("load", [load_adapter, load_encoder])
def test_a_path_that_leaves_the_models_folder_is_refused(load, name, fails, models, adapters):
    secret = models / "secret.pth"
    torch.save(tiny.adapter_tensors(), secret)
    error = fails(load(name.format(absolute=secret)))
    assert_says(error, "MissingFile", "is not among", "To use this node, put")
    assert "does not hold" not in error.exception_message, "the file was opened"


@pytest.mark.parametrize(
    ("folder", "advice"), [("llm4gen", "projector.pth"), ("text_encoders", "rankgen-t5-xl-all")]
)
def test_an_empty_folder_says_which_file_to_put_where(folder, advice, empty_server, empty_client):
    info = empty_client.object_info()
    node = "LLM4GEN_LoadCrossAdapter" if folder == "llm4gen" else "LLM4GEN_LoadLLMEncoder"
    name, load = ("adapter_name", load_adapter) if folder == "llm4gen" else ("encoder_name", load_encoder)
    (entry,) = info[node]["input"]["required"][name][1]["options"]
    assert advice in entry and f"models/{folder}" in entry
    for file in (entry, "a-name-from-a-shared-workflow.pth"):
        with pytest.raises(ExecutionError) as caught:
            empty_client.run(load(file))
        assert_says(caught.value, "MissingFile", advice, f"models/{folder}")


@pytest.mark.floor
def test_good_files_run(client):
    """The tests above change one thing in this workflow; without the change it runs."""
    assert client.run(conditioning())["5"]
