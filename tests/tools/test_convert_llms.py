"""LLMs other than T5, and .gguf files: the converted model gives the same states as its source."""

import json

import pytest
import torch
import transformers
from safetensors import safe_open

import convert
import gguf_files
from gguf_files import Kind
from llm4gen.models.checkpoints.rotary import old_spelling
from llm4gen.models.encoders.rows import real_rows
from llm4gen.models.errors import UnreadableFile
from llm4gen.models.files.values import DTYPES
from llm4gen.models.llm import open_llm
from paths import SMOLLM2, T5_TOKENIZER
from tiny import relative_error

IDS = torch.arange(3, 20)


def run(*arguments):
    return convert.main([str(argument) for argument in arguments])


@torch.inference_mode()
def states(path, dtype=None):
    file = open_llm(path)
    return file.load(file.config.layers, dtype=dtype)(IDS, real_rows(len(IDS)))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path):
    """A small Qwen2, which has biases, in shards, with a tokenizer."""
    gguf_files.make("Qwen2", vocab_size=32128).save_pretrained(tmp_path / "qwen", max_shard_size="4MB")
    transformers.AutoTokenizer.from_pretrained(str(T5_TOKENIZER)).save_pretrained(str(tmp_path / "qwen"))
    assert (tmp_path / "qwen" / "model.safetensors.index.json").is_file()
    return tmp_path / "qwen"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_converted_folder_gives_the_states_of_its_source(dtype, folder, tmp_path):
    assert run(folder, "--dtype", dtype) == 0
    new = tmp_path / f"qwen-{dtype}"
    assert torch.equal(states(new), states(folder, DTYPES[dtype]))
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= set(names(new))
    assert [name for name in names(new) if "0000" in name or "index" in name] == []


@pytest.mark.parametrize("family", gguf_files.FAMILIES)
def test_a_gguf_file_becomes_a_folder_that_transformers_loads_too(family, tmp_path, monkeypatch):
    oracle = gguf_files.make(family)
    gguf_files.write_decoder(tmp_path / "llm.gguf", oracle)
    # The small file holds no tokenizer.
    monkeypatch.setattr("llm4gen.models.conversion.gguf.load_tokenizer", lambda *_: NoTokenizer())
    assert run(tmp_path / "llm.gguf", "--dtype", "fp32") == 0
    new = tmp_path / "llm-fp32"
    assert tokenizer_of(new / "model.safetensors") == "llm.gguf"
    assert relative_error(states(new), states(tmp_path / "llm.gguf")) <= 1e-5
    config = json.loads((new / "config.json").read_text(encoding="utf-8"))
    assert config.items() >= old_spelling(config["rope_parameters"]).items(), "for transformers before 5"
    loaded = transformers.AutoModel.from_pretrained(str(new), dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = oracle(input_ids=IDS[None]).last_hidden_state[0]
        assert relative_error(loaded(input_ids=IDS[None]).last_hidden_state[0], expected) <= 1e-5


class NoTokenizer:
    def save_pretrained(self, folder):
        pass


def test_a_t5_in_a_gguf_file_becomes_one_file(tmp_path, capsys):
    oracle = gguf_files.t5(num_layers=2)
    gguf_files.write_t5(tmp_path / "t5.gguf", oracle, Kind.Q8_0)
    assert run(tmp_path / "t5.gguf", tmp_path / "t5.safetensors", "--dtype", "fp32") == 0
    assert relative_error(states(tmp_path / "t5.safetensors"), states(tmp_path / "t5.gguf")) <= 1e-5
    assert tokenizer_of(tmp_path / "t5.safetensors") == "ComfyUI's T5 tokenizer"

    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "tokenizer.json").write_text("{}")
    (tmp_path / "t5.gguf").rename(tmp_path / "own" / "t5.gguf")
    capsys.readouterr()
    assert run(tmp_path / "own" / "t5.gguf", tmp_path / "new.safetensors", "--dtype", "fp32") == 0
    assert tokenizer_of(tmp_path / "new.safetensors") == "own/tokenizer.json"
    assert f"with the tokenizer files of {tmp_path / 'own'}" in capsys.readouterr().out


def tokenizer_of(path):
    """The tokenizer that a converted file's metadata names."""
    with safe_open(path, framework="pt") as file:
        return file.metadata()["tokenizer"]


@pytest.mark.skipif(not SMOLLM2.is_file(), reason=f"NO SMOLLM2: {SMOLLM2.name} was not fetched")
@torch.inference_mode()
def test_a_converted_published_models_states_equal_transformers(module_path):
    """SmolLM2-135M-Instruct's .gguf file becomes a folder in fp32, which transformers loads for the comparison."""
    folder = module_path / "smollm2"
    assert run(SMOLLM2, folder, "--dtype", "fp32") == 0
    file = open_llm(folder)
    oracle = transformers.AutoModel.from_pretrained(str(folder), dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    for text in ("The capital of France is", "Ein Fuchs, der über einen trägen Hund springt: 狐 🦊"):
        ids = torch.tensor(tokenizer(text)["input_ids"])
        expected = oracle(input_ids=ids[None], output_hidden_states=True).hidden_states
        for layer in (-1, -2, 5):
            depth = layer % (file.config.layers + 1)
            states = file.load(depth)(ids, real_rows(len(ids)))
            assert relative_error(states, expected[layer][0]) <= 1e-5


def test_existing_files_are_not_replaced(folder, tmp_path, capsys):
    (tmp_path / "existing").mkdir()
    (tmp_path / "existing" / "model.safetensors").write_bytes(b"existing")
    (tmp_path / "file").write_bytes(b"existing")
    before = names(folder)
    for target, message in (
        ("existing", "exists already"),
        ("file", "must be a folder"),
        ("qwen", "source itself"),
    ):
        if target == "qwen":
            gguf_files.make("Qwen2", vocab_size=32128).save_pretrained(folder)
            before = names(folder)
        assert run(folder, tmp_path / target) == 1
        assert message in capsys.readouterr().err
    assert (tmp_path / "existing" / "model.safetensors").read_bytes() == b"existing"
    assert names(folder) == before


def test_a_new_folder_that_cannot_be_filled_is_removed(folder, tmp_path, monkeypatch):
    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("files.safetensors_writer.write_tensors", disk_full)
    assert run(folder, tmp_path / "new") == 1
    assert not (tmp_path / "new").exists()


def test_a_folder_without_weights_is_not_a_model_and_the_next_run_fills_it(folder, tmp_path):
    new = tmp_path / "new"
    with (
        pytest.raises(KeyboardInterrupt),
        convert.folder_with(lambda _: (new / "config.json").write_text("{}"), new),
    ):
        assert names(new) == ["config.json"]
        with pytest.raises(UnreadableFile):
            open_llm(new)
        raise KeyboardInterrupt
    new.mkdir()
    (new / "config.json").write_text("{}", encoding="utf-8")
    assert run(folder, new) == 0
    states(new)
