"""A published .gguf file, SmolLM2-135M-Instruct in Q4_1, gives the hidden states that transformers gives for it."""

import importlib.util

import pytest
import torch
from transformers import AutoModel

from gguf_files import Kind, write_decoder
from llm4gen.models.llm import LLM, open_llm
from llm4gen.models.recipe import Recipe
from llm4gen.models.tokens import load_tokenizer
from paths import SMOLLM2
from tiny import relative_error

TEXTS = [
    "The capital of France is",
    "a red cube on top of a blue sphere, in front of a green cone",
    "Ein Fuchs, der über einen trägen Hund springt: 狐 🦊",
]
pytestmark = [
    pytest.mark.skipif(not SMOLLM2.is_file(), reason=f"NO SMOLLM2: {SMOLLM2.name} was not fetched"),
    pytest.mark.skipif(
        importlib.util.find_spec("accelerate") is None,
        reason="NO ACCELERATE: transformers needs it to load .gguf files",
    ),
]


@pytest.fixture(scope="module")
def oracle():
    """transformers' model, with all matrices dequantised."""
    return AutoModel.from_pretrained(
        str(SMOLLM2.parent), gguf_file=SMOLLM2.name, dtype=torch.float32, local_files_only=True
    ).eval()


@pytest.fixture(scope="module")
def llm():
    file = open_llm(SMOLLM2)
    return LLM(file, load_tokenizer(SMOLLM2, file.config.vocabulary))


@pytest.mark.parametrize("layer", [-1, -2, 5])
@torch.inference_mode()
def test_hidden_states_equal_transformers(layer, oracle, llm):
    recipe = Recipe(template="{text}", padding="drop", layer=layer)
    encoder = llm.file.load(llm.depth(recipe))
    for text in TEXTS:
        ids = llm.tokenize(text, recipe).ids
        features = llm.encode(encoder, ids, recipe, device=torch.device("cpu"), compute_dtype=torch.float32)
        expected = oracle(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]
        assert relative_error(features.states, expected) <= 1e-5


@pytest.mark.parametrize(("kind", "bound"), [("Q8_0", 4e-2), ("Q4_K", 8e-2)])
@torch.inference_mode()
def test_quantised_to_another_encoding_its_states_stay_close(kind, bound, oracle, llm, tmp_path):
    """The states are those after all 30 layers. With Q4_K, rows that do not divide into its blocks are in Q8_0."""
    recipe = Recipe(template="{text}", padding="drop")
    write_decoder(tmp_path / "llm.gguf", oracle, Kind[kind])
    encoder = open_llm(tmp_path / "llm.gguf").load(llm.depth(recipe))
    for text in TEXTS[:2]:
        ids = llm.tokenize(text, recipe).ids
        features = llm.encode(encoder, ids, recipe, device=torch.device("cpu"), compute_dtype=torch.float32)
        expected = oracle(input_ids=torch.tensor([ids])).last_hidden_state[0]
        assert 1e-3 < relative_error(features.states, expected) <= bound


def test_the_tokenizer_is_read_from_the_file(llm):
    ids = llm.tokenize(TEXTS[2], Recipe(template="{text}")).ids
    assert llm.tokenizer.decode(ids, skip_special_tokens=True) == TEXTS[2]
    assert llm.tokenizer.convert_ids_to_tokens(llm.tokenize(TEXTS[0], Recipe(template="{text}")).ids)[
        -3:
    ] == [
        "Ġof",
        "ĠFrance",
        "Ġis",
    ]
