"""Model files are listed and found in the folders that ComfyUI has for them."""

import os

import pytest

import in_process


def put(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_the_default_folder_lies_in_comfyuis_models_folder():
    folders = in_process.start().folders
    assert os.path.join(folders.models_dir, "llm4gen") in folders.get_folder_paths("llm4gen")


def test_files_subfolders_and_model_folders_are_listed_once(place, tmp_path):
    put(tmp_path, "one/text_encoders/a.safetensors")
    put(tmp_path, "two/text_encoders/sub/b.bin")
    put(tmp_path, "one/text_encoders/readme.txt")
    for name in ("config.json", "model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"):
        put(tmp_path, f"two/text_encoders/t5/xl/{name}")
    assert place.choices("text_encoders") == ["a.safetensors", "sub/b.bin", "t5/xl"]
    assert place.resolve("text_encoders", "t5/xl") == tmp_path / "two/text_encoders/t5/xl"
    assert place.resolve("text_encoders", "sub/b.bin") == tmp_path / "two/text_encoders/sub/b.bin"


@pytest.mark.parametrize(
    "name",
    [
        # systems and cloud drives
        *(
            "._t5.safetensors",
            ".DS_Store",
            "Thumbs.db",
            "desktop.ini",
            ".t5.safetensors.icloud",
            "t5.safetensors.lnk",
        ),
        *(
            "__MACOSX/._t5.bin",
            "@eaDir/t5.bin",
            "$RECYCLE.BIN/t5.bin",
            ".Trash-1000/files/t5.bin",
            ".dropbox.cache/a.pt",
        ),
        # hubs
        *(
            ".cache/huggingface/download/t5.bin",
            ".git/lfs/t5.bin",
            ".gitattributes",
            "blobs/08e4f2.incomplete",
        ),
        # downloads that are not complete
        *("t5.safetensors.part", "t5.bin.crdownload", "t5.safetensors.download/t5.safetensors", "t5.bin.!qB"),
        # files that hold no model
        *(
            "training_args.bin",
            "optimizer.pt",
            "optimizer_1.bin",
            "scheduler.pt",
            "rng_state_0.pth",
            "scaler.pt",
        ),
        *(
            "global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt",
            "learned_embeds.bin",
            "mmproj-model-f16.gguf",
        ),
        *("unet/diffusion_pytorch_model.fp16.safetensors", "transformer/diffusion_pytorch_model.safetensors"),
        *("openvino/openvino_model.bin", "pytorch_lora_weights.safetensors", "Qwen2.5.imatrix.gguf"),
        # other formats
        *(
            "spiece.model",
            "tokenizer.model",
            "model.onnx",
            "flax_model.msgpack",
            "tf_model.h5",
            "model.ckpt.index",
        ),
    ],
)
def test_what_is_no_model_is_not_listed(name, place, tmp_path):
    put(tmp_path, f"one/text_encoders/{name}")
    put(tmp_path, f"one/text_encoders/sub/{name}")
    put(tmp_path, "one/text_encoders/sub/config.json")
    assert list(place.listed("text_encoders")) == []
    assert list(place.listed("llm4gen")) == []


def test_a_file_that_aria2_has_not_finished_is_not_listed(place, tmp_path):
    put(tmp_path, "one/text_encoders/t5.bin")
    control = put(tmp_path, "one/text_encoders/t5.bin.aria2")
    assert list(place.listed("text_encoders")) == []
    control.unlink()
    assert list(place.listed("text_encoders")) == ["t5.bin"]


def test_a_lora_of_peft_is_not_listed(place, tmp_path):
    put(tmp_path, "one/text_encoders/lora/adapter_model.safetensors")
    put(tmp_path, "one/llm4gen/adapter_model.safetensors")
    put(tmp_path, "one/text_encoders/lora/adapter_config.json")
    assert list(place.listed("text_encoders")) == []
    assert list(place.listed("llm4gen")) == ["adapter_model.safetensors"]


def test_quantisations_and_formats_beside_each_other_are_listed(place, tmp_path):
    for name in ("model.safetensors", "config.json", "qwen-Q4_K_M.gguf", "qwen-Q8_0.gguf", "tokenizer.json"):
        put(tmp_path, f"one/text_encoders/qwen/{name}")
    assert place.choices("text_encoders") == ["qwen", "qwen/qwen-Q4_K_M.gguf", "qwen/qwen-Q8_0.gguf"]


@pytest.mark.parametrize("suffix", ["safetensors", "bin", "gguf", "fp16.safetensors"])
def test_shards_without_a_config_are_listed_once(suffix, place, tmp_path):
    for number in (1, 2, 3):
        put(tmp_path, f"one/text_encoders/model-0000{number}-of-00003.{suffix}")
    assert place.choices("text_encoders") == [f"model-00001-of-00003.{suffix}"]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_a_hubs_cache_is_listed_by_its_snapshots(place, tmp_path):
    repository = "two/text_encoders/models--google--gemma-3-1b"
    blob = put(tmp_path, f"{repository}/blobs/08e4f2")
    put(tmp_path, f"{repository}/blobs/77aa31.incomplete")
    put(tmp_path, f"{repository}/refs/main")
    snapshot = tmp_path / repository / "snapshots" / "9b99be"
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (snapshot / name).symlink_to(blob)
    half = snapshot.with_name("dcc83e")
    half.mkdir()
    (half / "config.json").symlink_to(blob)
    (half / "model.safetensors").symlink_to(half / "nowhere")
    assert place.choices("text_encoders") == ["models--google--gemma-3-1b/snapshots/9b99be"]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_a_changed_file_behind_a_link_has_another_fingerprint(place, tmp_path):
    blob = put(tmp_path, "elsewhere/t5.bin")
    (tmp_path / "one/text_encoders/t5.bin").symlink_to(blob)
    (tmp_path / "two/text_encoders/linked").symlink_to(blob.parent)
    assert place.choices("text_encoders") == ["linked/t5.bin", "t5.bin"]
    before = [place.fingerprint("text_encoders", name) for name in ("linked/t5.bin", "t5.bin")]
    blob.write_bytes(b"yz")
    after = [place.fingerprint("text_encoders", name) for name in ("linked/t5.bin", "t5.bin")]
    assert before[0] != after[0] and before[1] != after[1]


def test_a_workflow_from_windows_finds_its_files(place, tmp_path):
    path = put(tmp_path, "one/llm4gen/sub/projector.pth")
    assert place.resolve("llm4gen", "sub\\projector.pth") == path


@pytest.mark.parametrize("name", ["sub/projector.pth", "sub/projector.bin", "sub\\projector.pth"])
def test_an_adapter_is_found_under_its_name_in_another_format(name, place, tmp_path):
    path = put(tmp_path, "one/llm4gen/sub/projector.safetensors")
    assert place.resolve("llm4gen", name) == place.find("llm4gen", name) == path
    assert place.fingerprint("llm4gen", name) == place.fingerprint("llm4gen", "sub/projector.safetensors")


def test_an_adapter_in_several_formats_is_the_one_that_is_named(place, tmp_path):
    paths = {name: put(tmp_path, f"one/llm4gen/{name}") for name in ("p.pth", "p.safetensors")}
    assert {name: place.find("llm4gen", name) for name in paths} == paths
    assert place.find("llm4gen", "p.bin") is None, "nothing says which of the two is meant"


def test_an_encoder_is_not_replaced_by_one_in_another_format(place, tmp_path):
    """It may hold other numbers: converters of encoders often round."""
    put(tmp_path, "one/text_encoders/t5.safetensors")
    assert place.find("text_encoders", "t5.bin") is None


@pytest.mark.skipif(os.name == "nt", reason="a file name cannot hold a backslash on Windows")
def test_a_backslash_may_be_part_of_a_files_name(place, tmp_path):
    path = put(tmp_path, "one/llm4gen/a\\b.pth")
    assert place.resolve("llm4gen", *place.choices("llm4gen")) == path


def test_of_equal_names_the_file_in_the_first_folder_is_used(place, tmp_path):
    first, _ = put(tmp_path, "one/llm4gen/p.pth"), put(tmp_path, "two/llm4gen/p.pth")
    assert place.resolve("llm4gen", "p.pth") == first
    for name in ("one/text_encoders/t5/model.safetensors", "two/text_encoders/t5/pytorch_model.bin"):
        put(tmp_path, name)
        put(tmp_path, name.rpartition("/")[0] + "/config.json")
    assert place.resolve("text_encoders", "t5") == tmp_path / "one/text_encoders/t5"


def test_a_new_file_is_listed_in_place_of_the_advice(place, tmp_path):
    (advice,) = place.choices("llm4gen")
    assert "projector.pth" in advice and "models/llm4gen" in advice
    put(tmp_path, "one/llm4gen/p.pth")
    assert place.choices("llm4gen") == ["p.pth"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../secret.pth", "sub/../../secret.pth", "/etc/passwd", "a\0b", "C:\\x", 5]
)
def test_a_name_that_leaves_the_folders_is_refused(name, place, tmp_path):
    from llm4gen.models.errors import MissingFile  # noqa: PLC0415

    put(tmp_path, "one/secret.pth")
    put(tmp_path, "one/llm4gen/p.pth")
    with pytest.raises(MissingFile, match=r"is not among the 1 file.*put LLM4GEN's projector.pth"):
        place.resolve("llm4gen", name)
    with pytest.raises(MissingFile):
        place.resolve("llm4gen", str(tmp_path / "one/secret.pth"))


def test_a_changed_file_has_another_fingerprint(place, tmp_path):
    path = put(tmp_path, "one/llm4gen/p.pth")
    before = place.fingerprint("llm4gen", "p.pth")
    assert place.fingerprint("llm4gen", "p.pth") == before
    path.write_bytes(b"yz")
    assert place.fingerprint("llm4gen", "p.pth") != before
    assert place.fingerprint("llm4gen", "gone.pth") == "gone.pth"


def test_a_loader_with_a_connected_name_stays_cached(place):
    """ComfyUI asks for the fingerprint before the name is known; after an error it would run the node every time."""
    for node, name in (
        ("LLM4GEN_LoadLLMEncoder", "encoder_name"),
        ("LLM4GEN_LoadCrossAdapter", "adapter_name"),
    ):
        loader = in_process.start().ours[node]
        assert loader.fingerprint_inputs(**{name: None}) == loader.fingerprint_inputs(**{name: None})


def test_a_changed_shard_gives_the_folder_another_fingerprint(place, tmp_path):
    put(tmp_path, "one/text_encoders/t5/config.json")
    shard = put(tmp_path, "one/text_encoders/t5/model-1.safetensors")
    before = place.fingerprint("text_encoders", "t5")
    shard.write_bytes(b"yz")
    assert place.fingerprint("text_encoders", "t5") != before


@pytest.mark.parametrize("changed", ["model-00002-of-00002.bin", "tokenizer.json"])
def test_a_changed_part_gives_a_model_without_a_config_another_fingerprint(changed, place, tmp_path):
    for number in (1, 2):
        put(tmp_path, f"one/text_encoders/t5/model-0000{number}-of-00002.bin")
    put(tmp_path, "one/text_encoders/t5/other.bin").write_bytes(b"another model")
    before = place.fingerprint("text_encoders", "t5/model-00001-of-00002.bin")
    put(tmp_path, "one/text_encoders/t5/other.bin")
    assert place.fingerprint("text_encoders", "t5/model-00001-of-00002.bin") == before
    put(tmp_path, f"one/text_encoders/t5/{changed}").write_bytes(b"yz")
    assert place.fingerprint("text_encoders", "t5/model-00001-of-00002.bin") != before


@pytest.mark.parametrize("number", ["", "_2", "_3"])
def test_a_pipelines_tokenizer_is_found_beside_its_encoder(number, place, tmp_path):
    folder = put(tmp_path, f"one/text_encoders/pipeline/text_encoder{number}/config.json").parent
    put(tmp_path, f"one/text_encoders/pipeline/text_encoder{number}/model.safetensors")
    before = place.fingerprint("text_encoders", f"pipeline/text_encoder{number}")
    beside = put(tmp_path, f"one/text_encoders/pipeline/tokenizer{number}/tokenizer.json")
    assert (
        place.tokenizer_place(folder, is_t5=False)
        == place.tokenizer_place(folder, is_t5=True)
        == beside.parent
    )
    assert place.fingerprint("text_encoders", f"pipeline/text_encoder{number}") != before
    own = put(tmp_path, f"one/text_encoders/pipeline/text_encoder{number}/tokenizer.json")
    assert place.tokenizer_place(folder, is_t5=False) == own.parent


def test_an_encoders_tokenizer_is_looked_for_only_in_its_own_folder(place, tmp_path):
    shared = put(tmp_path, "one/text_encoders/a.safetensors")
    assert place.tokenizer_folder(shared) is None
    own = put(tmp_path, "one/text_encoders/t5/a.safetensors")
    assert place.tokenizer_folder(own) == own.parent == place.tokenizer_folder(own.parent)


def test_comfyuis_t5_tokenizer_exists(place):
    assert (place.host_t5_tokenizer() / "tokenizer.json").is_file()
