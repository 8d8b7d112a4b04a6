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


def test_an_encoders_tokenizer_is_looked_for_only_in_its_own_folder(place, tmp_path):
    shared = put(tmp_path, "one/text_encoders/a.safetensors")
    assert place.tokenizer_folder(shared) is None
    own = put(tmp_path, "one/text_encoders/t5/a.safetensors")
    assert place.tokenizer_folder(own) == own.parent == place.tokenizer_folder(own.parent)


def test_comfyuis_t5_tokenizer_exists(place):
    assert (place.host_t5_tokenizer() / "tokenizer.json").is_file()
