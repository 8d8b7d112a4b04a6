"""Whether an LLM is the one that an adapter was trained with: told over every format in which the same LLM may lie."""

import json
import shutil
from itertools import permutations, product

import pytest
import torch
from safetensors.torch import save_file

import decoders
import gguf_files
import tiny
from gguf_files import Kind
from llm4gen.models.checkpoints.same_llm import OTHER_FILE, OTHER_LLM, LLMFacts, doubt, trained_llm
from llm4gen.models.files.fp8 import scale_for, scale_name
from llm4gen.models.llm import open_llm

T5_SIZES = {"d_model": 64, "d_kv": 16, "d_ff": 128, "vocab_size": 1000}

DECODER_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "head_dim": 16,
    "vocab_size": 64,
}


def scaled_fp8(tensors):
    """As ComfyUI lays out scaled fp8."""
    matrices = {name: tensor for name, tensor in tensors.items() if "DenseReluDense" in name}
    scales = {name: scale_for(float(tensor.abs().max())) for name, tensor in matrices.items()}
    small = {name: (tensor / scales[name]).to(torch.float8_e4m3fn) for name, tensor in matrices.items()}
    kept = {scale_name(name): torch.tensor(scale) for name, scale in scales.items()}
    return {**tensors, **small, **kept, "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}


def write_t5(folder, **changes):
    """One T5 in seven forms, two of them of a whole model with its decoder."""
    sizes = T5_SIZES | changes
    oracle, whole = tiny.t5_encoder(**sizes), tiny.whole_t5(**sizes)
    tensors = tiny.rankgen_tensors(oracle)
    save_file(tensors, folder / "fp32.safetensors")
    torch.save({name: tensor.half() for name, tensor in tensors.items()}, folder / "fp16.bin")
    save_file(scaled_fp8(tensors), folder / "fp8.safetensors")
    gguf_files.write_t5(folder / "t5.gguf", oracle, Kind.Q8_0)
    oracle.save_pretrained(folder / "folder")
    whole.save_pretrained(folder / "whole")
    tiny.save_shards(folder / "shards", tensors, "bin")


def write_decoder(folder, **changes):
    """One LLM in four forms, of which one has a padded embedding. As a `.gguf` file, a Mistral is a Llama."""
    sizes = DECODER_SIZES | changes
    gguf_files.write_decoder(folder / "llm.gguf", gguf_files.make("Llama", **sizes), Kind.Q8_0)
    padded = gguf_files.make("Llama", **sizes | {"vocab_size": sizes["vocab_size"] + 64})
    gguf_files.write_decoder(folder / "padded.gguf", padded)
    mistral = decoders.make("Mistral", folder / "folder", **sizes)
    mistral.half().save_pretrained(folder / "fp16")


def forms(folder):
    return {path.name: open_llm(path).facts for path in sorted(folder.iterdir())}


WRITERS = {"t5": write_t5, "decoder": write_decoder}
# Of each, the change that makes another LLM of the same width.
OTHERS = {
    "t5": [{"num_layers": 2}, {"d_ff": 96}, {"vocab_size": 4000}],
    "decoder": [{"num_hidden_layers": 2}, {"intermediate_size": 64}, {"vocab_size": 4000}],
}


@pytest.fixture(scope="module", params=WRITERS)
def kind(request):
    """The name of a writer."""
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    """One LLM in all forms."""
    folder = tmp_path_factory.mktemp(kind)
    WRITERS[kind](folder)
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return forms(folder)


def test_no_form_of_an_llm_is_taken_for_another_llm(kind, found):
    assert len(found) == {"t5": 7, "decoder": 4}[kind]
    assert len({one.sha256_of_ends for one in found.values()}) == len(found)
    for one, other in permutations(found.values(), 2):
        assert doubt(trained_llm(json.dumps({"llm": one.entry})), other) == OTHER_FILE


def test_the_forms_of_one_llm_need_not_have_one_name_of_its_architecture(tmp_path):
    """So that is not compared."""
    write_decoder(tmp_path)
    kinds = {path.name: open_llm(path).kind for path in tmp_path.iterdir()}
    assert (kinds["llm.gguf"], kinds["folder"]) == ("llama", "mistral")


def test_a_copy_is_the_same_file_wherever_it_lies_and_whatever_its_name(folder, found, tmp_path):
    for path in folder.iterdir():
        new = tmp_path / f"renamed-{path.name}"
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, new)
        assert doubt(trained_llm(json.dumps({"llm": found[path.name].entry})), open_llm(new).facts) is None


def test_another_llm_of_the_same_width_is_told_in_every_form(kind, found, tmp_path):
    for number, change in enumerate(OTHERS[kind]):
        place = tmp_path / str(number)
        place.mkdir()
        WRITERS[kind](place, **change)
        for trained, (name, loaded) in product(found.values(), forms(place).items()):
            assert (trained.width, doubt(trained, loaded)) == (loaded.width, OTHER_LLM), (change, name)


def test_a_t5_is_never_a_decoder():
    sizes = (3, 64, 96, 32000)
    assert doubt(LLMFacts("a", "1", "t5", *sizes), LLMFacts("b", "2", "decoder", *sizes)) == OTHER_LLM


def test_of_an_adapter_that_does_not_tell_the_sizes_only_the_content_counts(found):
    """Such as those that were saved before sizes were recorded."""
    first, *others = found.values()
    entry = {"name": first.name, "sha256_of_ends": first.sha256_of_ends}
    old = trained_llm(json.dumps({"llm": entry, "steps": 1}))
    assert doubt(old, first) is None
    assert {doubt(old, one) for one in others} == {OTHER_FILE}


NOTHING_KNOWN = [
    *(None, "{}", '{"llm": null}', '{"llm": "x"}', '{"llm": [1]}', '{"llm": {}}', '{"llm": {"name": 3}}'),
    '{"llm": {"name": "x"}}',
    '{"llm": {"name": "x", "sha256_of_ends": 7, "layers": "9", "width": true, "architecture": 5}}',
]


@pytest.mark.parametrize("training", NOTHING_KNOWN)
def test_of_an_adapter_that_does_not_tell_nothing_is_said(training, found):
    assert {doubt(trained_llm(training), one) for one in found.values()} == {None}
