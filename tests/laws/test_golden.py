"""The Cross-Adapter and the T5 give what the published module and the published text path gave (files in `golden/`)."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm4gen.models.checkpoints.adapter import load_cross_adapter
from llm4gen.models.encoders.rows import all_rows, distinct_rows
from llm4gen.models.llm import LLM, open_llm
from llm4gen.models.recipe import Recipe
from llm4gen.models.tokens import load_tokenizer
from paths import GOLDEN, T5_TOKENIZER
from tiny import load_encoder


def golden_weights(file, tmp_path, metadata=None):
    """Writes the weights of a golden file to a file of their own: its path, and all tensors of the golden file."""
    tensors = load_file(GOLDEN / file)
    weights = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
    save_file(weights, tmp_path / file, metadata)
    return tmp_path / file, tensors


def golden_prompts():
    with (GOLDEN / "rankgen.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return json.loads(header["__metadata__"]["prompts"])


def test_fused_tokens_equal_the_published_module(tmp_path):
    path, golden = golden_weights("fusion.safetensors", tmp_path, {"llm4gen": '{"heads": 4}'})
    adapter, _ = load_cross_adapter(path)
    fused = torch.cat([golden["clip"], adapter(golden["clip"], golden["llm"])], dim=1)
    assert (fused - golden["fused"]).abs().max() <= 2e-5


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("plan", [distinct_rows, all_rows])
def test_hidden_states_equal_the_published_text_path(index, plan, tmp_path):
    path, golden = golden_weights("rankgen.safetensors", tmp_path)
    encoder = load_encoder(path, dtype=torch.float32)
    llm = LLM(open_llm(path), load_tokenizer(T5_TOKENIZER, encoder.config.vocabulary))

    ids = torch.tensor(llm.tokenize(golden_prompts()[index], Recipe()).ids)
    padded = torch.nn.functional.pad(ids, (0, 256 - len(ids)))
    assert torch.equal(padded[None], golden[f"{index}.input_ids"])
    mask = (torch.arange(256) < len(ids)).long()
    assert torch.equal(mask[None], golden[f"{index}.attention_mask"])

    rows = plan(len(ids), 256)
    states = rows.expand(encoder(ids, rows))
    assert (states[None] - golden[f"{index}.hidden"]).abs().max() <= 2e-4
