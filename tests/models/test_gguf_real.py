"""A published model, SmolLM2-135M-Instruct in Q4_1: our states of it against those of transformers' own loading."""

import importlib.util

import pytest
import torch
from transformers import AutoModel

from gguf_files import Kind, write_decoder
from llm4gen.models.llm import LLM, open_llm
from llm4gen.models.recipe import Recipe
from llm4gen.models.tokens import load_tokenizer
from paths import REAL_LLM
from tiny import relative_error

TEXTS = [
    "The capital of France is",
    "a red cube on top of a blue sphere, in front of a green cone",
    "Ein Fuchs, der über einen trägen Hund springt: 狐 🦊",
]
pytestmark = [
    pytest.mark.skipif(not REAL_LLM.is_file(), reason=f"NO REAL LLM: {REAL_LLM.name} was not fetched"),
    pytest.mark.skipif(
        importlib.util.find_spec("accelerate") is None,
        reason="NO ACCELERATE: transformers loads no .gguf without",
    ),
]


@pytest.fixture(scope="module")
def oracle():
    """transformers expands the whole file."""
    return AutoModel.from_pretrained(
        str(REAL_LLM.parent), gguf_file=REAL_LLM.name, dtype=torch.float32, local_files_only=True
    ).eval()


@pytest.fixture(scope="module")
def llm():
    source = open_llm(REAL_LLM)
    return LLM(source, load_tokenizer(REAL_LLM, source.config.vocabulary))


@pytest.mark.parametrize("layer", [-1, -2, 5])
@torch.inference_mode()
def test_its_states_are_transformers_own(layer, oracle, llm):
    recipe = Recipe(template="{text}", padding="drop", layer=layer)
    reader = llm.file.load(llm.depth(recipe))
    for text in TEXTS:
        ids = llm.tokenize(text, recipe).ids
        found = llm.encode(reader, ids, recipe, device=torch.device("cpu"), compute_dtype=torch.float32)
        truth = oracle(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]
        assert relative_error(found.states, truth) <= 1e-5


@pytest.mark.parametrize(("kind", "most"), [("Q8_0", 4e-2), ("Q4_K", 8e-2)])
@torch.inference_mode()
def test_packed_anew_its_states_stay_close(kind, most, oracle, llm, tmp_path):
    """To the last norm, after 30 layers; of what is kept in 4 bits, rows of other lengths than blocks have in 8."""
    recipe = Recipe(template="{text}", padding="drop")
    write_decoder(tmp_path / "llm.gguf", oracle, Kind[kind])
    reader = open_llm(tmp_path / "llm.gguf").load(llm.depth(recipe))
    for text in TEXTS[:2]:
        ids = llm.tokenize(text, recipe).ids
        found = llm.encode(reader, ids, recipe, device=torch.device("cpu"), compute_dtype=torch.float32)
        truth = oracle(input_ids=torch.tensor([ids])).last_hidden_state[0]
        assert 1e-3 < relative_error(found.states, truth) <= most


def test_its_tokenizer_comes_from_the_file(llm):
    ids = llm.tokenize(TEXTS[2], Recipe(template="{text}")).ids
    assert llm.tokenizer.decode(ids, skip_special_tokens=True) == TEXTS[2]
    assert llm.tokenizer.convert_ids_to_tokens(llm.tokenize(TEXTS[0], Recipe(template="{text}")).ids)[
        -3:
    ] == [
        "Ġof",
        "ĠFrance",
        "Ġis",
    ]
