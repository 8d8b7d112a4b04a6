"""What the log says where an adapter meets an LLM that may not be the one that it was trained with."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file

import in_process
import tiny
from gguf_files import write_t5
from llm4gen.models.checkpoints.same_llm import OTHER_FILE, OTHER_LLM, SENTENCES
from training_inputs import JOB, NEW

TEXT = "a red cat on a mat"
LLMS = {OTHER_FILE: "half.safetensors", OTHER_LLM: "other.gguf", None: "mine.safetensors"}


@pytest.fixture(scope="module")
def llms(tmp_path_factory):
    """A folder with LLMs of one width."""
    folder, mine = tmp_path_factory.mktemp("llms"), tiny.t5_encoder()
    tensors = tiny.rankgen_tensors(mine)
    save_file(tensors, folder / LLMS[None])
    save_file({name: weight.half() for name, weight in tensors.items()}, folder / LLMS[OTHER_FILE])
    write_t5(folder / LLMS[OTHER_LLM], tiny.t5_encoder(num_layers=2))
    return folder


@pytest.fixture
def load_llm(llms, llm):
    """A function that gives one of them as Load LLM Encoder does, but with a tokenizer that is loaded already."""
    from llm4gen.models.llm import LLM, open_llm  # noqa: PLC0415
    from llm4gen.nodes.managed import ManagedLLM  # noqa: PLC0415

    return lambda found: ManagedLLM(LLM(open_llm(llms / LLMS[found]), llm.llm.tokenizer), "fp32", "default")


@pytest.fixture
def load(load_llm, place, tmp_path, started):
    """A function that loads one of them anew, and the adapter that was trained with LLMS[None]."""
    from llm4gen.nodes.training.data import identity_of  # noqa: PLC0415

    entry = {"llm4gen_training": json.dumps({"llm": identity_of(load_llm(None))})}
    save_file(tiny.adapter_tensors(clip=768), tmp_path / "one" / "llm4gen" / "own.safetensors", entry)

    def load(found):
        adapter = in_process.run(started.ours["LLM4GEN_LoadCrossAdapter"], adapter_name="own.safetensors")
        return {"llm": load_llm(found), "adapter": adapter}

    return load


@pytest.fixture
def fuse(started):
    """LLM4GEN Fuse Conditioning, which needs no CLIP."""
    plain = [[torch.randn(1, 77, 768), {}]]

    def fuse(**fusion):
        node = started.ours["LLM4GEN_FuseConditioning"]
        with torch.inference_mode():
            return in_process.run(node, conditioning=plain, text=TEXT, **fusion)

    return fuse


@pytest.fixture
def training_set(started, clip):
    def training_set(**fusion):
        latents = [{"samples": torch.zeros(1, 4, 8, 8)}]
        lists = {name: [one] for name, one in {"texts": TEXT, "clip": clip, **fusion}.items()}
        with torch.inference_mode():
            return in_process.run(started.ours["LLM4GEN_TrainingSet"], latents=latents, **lists)

    return training_set


def said(caplog):
    """What the log says of LLMs: level and text."""
    lines = [(record.levelno, record.getMessage()) for record in caplog.records]
    return [(level, text) for level, text in lines if "trained with another" in text]


def expected(found):
    """The line that says it."""
    level = logging.WARNING if found == OTHER_LLM else logging.INFO
    words = {"adapter": "The adapter", "encoder": LLMS[found], "llm": LLMS[None]}
    return level, SENTENCES[found].format(**words)


@pytest.mark.parametrize("found", LLMS)
def test_the_log_says_once_of_a_loaded_pair_that_its_llm_may_be_another(found, load, load_llm, fuse, caplog):
    line = [expected(found)] if found else []
    with caplog.at_level(logging.INFO):
        pair = load(found)
        fuse(**pair, strength=0.0)
        assert said(caplog) == [], "without the LLM's half nothing is wrong"
        fuse(**pair)
        fuse(**pair)
        assert said(caplog) == line
        fuse(**pair | {"llm": load_llm(None)})
        assert said(caplog) == line, "the right LLM with the same adapter"
        fuse(**load(found))
        assert said(caplog) == 2 * line, "loaded anew"


def test_every_node_that_fuses_says_it(load, fuse, training_set, condition, started, clip, caplog):
    def fused_clip(**fusion):
        in_process.run(started.ours["LLM4GEN_ApplyToCLIP"], clip=clip, **fusion).tokenize(TEXT)

    def conditioning(**fusion):
        condition(TEXT, **fusion)

    with caplog.at_level(logging.INFO):
        for node in (conditioning, fused_clip, training_set):
            caplog.clear()
            pair = load(OTHER_LLM)
            node(**pair)
            fuse(**pair)
            assert said(caplog) == [expected(OTHER_LLM)], node.__name__


def test_an_adapter_knows_the_llm_that_trained_it_before_it_is_saved(
    load_llm, fuse, training_set, started, model, caplog
):
    ours, llm = started.ours, load_llm(None)
    with caplog.at_level(logging.INFO):
        with torch.inference_mode():
            fresh = in_process.run(ours["LLM4GEN_NewCrossAdapter"], llm=llm, **NEW)
            pairs = training_set(llm=llm, adapter=fresh)
            adapter, *_ = ours["LLM4GEN_TrainCrossAdapter"].execute(model, pairs, fresh, **JOB).args
        for again in (llm, load_llm(None)):
            fuse(llm=again, adapter=adapter)
        assert said(caplog) == []
        fuse(llm=load_llm(OTHER_LLM), adapter=adapter)
    assert said(caplog) == [expected(OTHER_LLM)]
    sizes = {"architecture": "t5", "layers": 3, "width": 32, "mlp_dim": 64, "vocabulary": tiny.VOCABULARY}
    entry = json.loads(adapter.training)["llm"]
    digest = entry.pop("sha256_of_ends")
    assert entry == {"name": LLMS[None], **sizes} and len(digest) == 64
