"""LLMs in `.gguf` files: the states of the numbers in them, with the matrices left quantised."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from gguf_files import Kind, expanded, write_decoder, write_t5

from llm4gen.models.errors import IncompleteCheckpoint, MissingPackage, UnknownCheckpoint, UnreadableFile
from llm4gen.models.rows import distinct_rows, real_rows
from llm4gen.models.source import open_source

from paths import ROOT

IDS = torch.tensor([5, 9, 33, 7, 41, 60, 12])
LENGTH = 24
# How far the states may be from those of the weights before they were quantised. Random numbers are themselves
# 0.5% (Q8_0) to 9% (Q4_0) off then.
BOUNDS = {
    "F32": 1e-5, "F16": 1e-3, "BF16": 1e-2, "Q8_0": 1e-2, "Q6_K": 5e-2, "Q5_1": 0.1, "Q5_0": 0.1, "Q5_K": 0.1,
    "Q4_1": 0.2, "Q4_0": 0.2, "Q4_K": 0.2,
}  # fmt: skip


def t5(**changes):
    return tiny.t5_encoder(
        **({"d_model": 256, "d_ff": 512, "d_kv": 64, "vocab_size": 64, "num_layers": 1} | changes)
    )


def states(path, depth=None, **settings):
    """Of every position; real ones alone for other models than T5."""
    source = open_source(path)
    rows = distinct_rows(len(IDS), LENGTH) if source.is_t5 else real_rows(len(IDS))
    return rows.spread(source.load(source.config.layers if depth is None else depth)(IDS, rows, **settings))


def truths(oracle, length=LENGTH):
    """transformers' states of every layer."""
    padded = torch.nn.functional.pad(IDS, (0, length - len(IDS)))[None]
    mask = (torch.arange(length) < len(IDS)).long()[None]
    out = oracle(input_ids=padded, attention_mask=mask, output_hidden_states=True)
    return [layer[0] for layer in out.hidden_states]


@pytest.mark.parametrize("kind", BOUNDS)
def test_every_encodings_states_are_those_of_the_numbers_in_it(kind, tmp_path):
    write_t5(tmp_path / "t5.gguf", t5(), Kind[kind])
    found, exact = states(tmp_path / "t5.gguf"), truths(t5())[-1]
    assert tiny.relative_error(found, truths(expanded(t5(), Kind[kind]))[-1]) <= 1e-5
    assert tiny.relative_error(found, exact) <= BOUNDS[kind]


FAMILIES = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 128},
    "Gemma2": {"head_dim": 256, "sliding_window": 3},
    "Gemma3Text": {"head_dim": 256, "sliding_window": 3, "num_hidden_layers": 7},
    "Phi3": {"vocab_size": 32064},
}


def make(family, **changes):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "pad_token_id": 0,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    }  # fmt: skip
    config = getattr(transformers, f"{family}Config")(**(sizes | FAMILIES[family] | changes))
    model = transformers.AutoModel.from_config(config).eval().requires_grad_(False)
    for (
        name,
        weight,
    ) in model.named_parameters():  # norms of one and biases of zero would hide what is done to them
        if weight.ndim == 1:
            torch.nn.init.uniform_(weight, *((0.5, 1.5) if "norm" in name else (-0.1, 0.1)))
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [Kind.F32, Kind.Q8_0])
def test_every_familys_every_layer_is_transformers_own(family, kind, tmp_path):
    theta = 1e6 if "Gemma3" in family else 1e4
    write_decoder(tmp_path / "llm.gguf", make(family), kind, theta)
    for depth, truth in enumerate(truths(expanded(make(family), kind), len(IDS))):
        assert tiny.relative_error(states(tmp_path / "llm.gguf", depth), truth) <= 1e-5


def test_llamas_later_rotation_is_read_from_the_file(tmp_path):
    stretch = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}
    stretch |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    llama = make("Llama", rope_parameters=stretch)
    plain = 1e4 ** -(torch.arange(0, 16, 2) / 16)
    write_decoder(
        tmp_path / "llm.gguf", llama, extra={"rope_freqs.weight": plain / llama.rotary_emb.inv_freq}
    )
    truth = truths(llama, len(IDS))[-1]
    assert tiny.relative_error(states(tmp_path / "llm.gguf"), truth) <= 1e-5
    write_decoder(tmp_path / "plain.gguf", llama)
    assert tiny.relative_error(states(tmp_path / "plain.gguf"), truth) > 1e-4


@pytest.mark.parametrize(("products", "most"), [(torch.bfloat16, 2e-2), (torch.float16, 5e-3)])
@pytest.mark.parametrize("write", [write_t5, write_decoder])
def test_products_of_16_bits_stay_close(write, products, most, tmp_path):
    write(tmp_path / "llm.gguf", t5() if write is write_t5 else make("Qwen2"), Kind.Q8_0)
    exact = states(tmp_path / "llm.gguf")
    assert 0 < tiny.relative_error(states(tmp_path / "llm.gguf", products=products), exact) <= most


@pytest.mark.parametrize("write", [write_t5, write_decoder])
def test_layers_beyond_the_wanted_one_are_not_there(write, tmp_path):
    write(tmp_path / "llm.gguf", t5(num_layers=3) if write is write_t5 else make("Llama"), Kind.Q8_0)
    reader, turns = open_source(tmp_path / "llm.gguf").load(2), []
    holding = [name for name, layer in reader.named_modules() if getattr(layer, "matrix", None)]
    assert {part for name in holding for part in name.split(".") if part.isdigit()} == {"0", "1"}
    reader(IDS, real_rows(len(IDS)), on_layer=lambda: turns.append(1))
    assert len(turns) == 2


def test_matrices_are_no_parameters_and_all_else_is_fp32(tmp_path):
    for name, write, model in (("t5", write_t5, t5()), ("llm", write_decoder, make("Qwen2"))):
        write(tmp_path / f"{name}.gguf", model, Kind.Q4_0)
        reader = open_source(tmp_path / f"{name}.gguf").load(1)
        assert all(weight.dtype == torch.float32 and weight.ndim < 2 for weight in reader.parameters())
        assert reader.dtype == torch.float32


READ = """
import sys, types
from pathlib import Path
root, path = sys.argv[1:]
pack = types.ModuleType("llm4gen"); pack.__path__ = [root]; sys.modules["llm4gen"] = pack
import torch
from llm4gen.models.rows import distinct_rows
from llm4gen.models.source import open_source

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

def warm(dtype):
    layer = torch.nn.Linear(512, 512, bias=False, dtype=dtype)
    layer(torch.zeros(64, 512).to_mkldnn() if dtype is torch.float32 else torch.zeros(64, 512, dtype=dtype))

import gguf
warm(torch.float32), warm(torch.bfloat16), torch.nn.Embedding(8, 8, device="meta")  # their code's own memory
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
before = peak()
source = open_source(Path(path))
states = source.load(2)(torch.arange(30), distinct_rows(30, 256), products=torch.bfloat16)
assert states.isfinite().all()
print(peak() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)
def test_loading_and_reading_hold_the_quantised_file_and_one_matrix(tmp_path):
    """Half of what the weights would be in bf16; the file alone is 0.28 of it."""
    large = tiny.t5_encoder(d_model=2048, d_ff=5120, d_kv=64, num_heads=32, num_layers=2)
    size = 2 * sum(weight.numel() for weight in large.parameters())
    write_t5(tmp_path / "t5.gguf", large, Kind.Q4_0)
    command = [sys.executable, "-c", READ, str(ROOT), str(tmp_path / "t5.gguf")]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 0.1 * size < grown < 0.5 * size


def test_without_the_package_an_error_names_it(tmp_path, monkeypatch):
    write_t5(tmp_path / "t5.gguf", t5())
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingPackage, match="pip install gguf"):
        open_source(tmp_path / "t5.gguf")


def test_the_package_is_not_imported_before_such_a_file_is_opened():
    pack = "import sys, types; pack = types.ModuleType('llm4gen'); pack.__path__ = [sys.argv[1]]; "
    look = "sys.modules['llm4gen'] = pack; import llm4gen.models.llm; sys.exit('gguf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", pack + look, str(ROOT)], check=False).returncode == 0


@pytest.mark.parametrize("kept", [0, 10, 300, 2000, -100])
def test_a_damaged_or_cut_file_is_told_from_a_good_one(kept, tmp_path):
    path = tmp_path / "t5.gguf"
    write_t5(path, t5(), Kind.Q8_0)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UnreadableFile, match=r"t5.gguf \(\d+ bytes\) is damaged, cut short"):
        open_source(path)


def test_other_files_are_told_what_they_are(tmp_path):
    path = tmp_path / "llm.gguf"
    llama, odd = make("Llama"), Kind.Q8_K
    for write, words in (
        (
            lambda: write_t5(path, t5(), arch="mamba"),
            "architecture mamba. Of .gguf files, t5, t5encoder, llama",
        ),
        (lambda: write_t5(path, t5(), **{"split.count": 3}), "one of 3 parts"),
        (
            lambda: write_t5(path, t5(), **{"attention.layer_norm_epsilon": 1e-5}),
            "epsilon is 1e-05|epsilon is 9.99",
        ),
        (lambda: write_t5(path, t5(), without="ffn_gate"), "no encoder of T5 v1.1's kind"),
        (lambda: write_t5(path, t5(), odd), "quantised as Q8_K, which .* cannot expand"),
        (lambda: write_decoder(path, llama, **{"rope.scaling.type": "yarn"}), "positions stretched by yarn"),
        (lambda: write_decoder(path, llama, **{"rope.dimension_count": 8}), "heads that rotate in part"),
        (
            lambda: write_decoder(path, make("Gemma2", head_dim=16)),
            "attention scaled by other than its heads",
        ),
    ):
        write()
        with pytest.raises(UnknownCheckpoint, match=words):
            open_source(path)


def test_what_is_missing_or_surplus_or_not_finite_is_named(tmp_path):
    path = tmp_path / "llm.gguf"
    write_t5(path, t5(), without="ffn_up")
    with pytest.raises(IncompleteCheckpoint, match=r"lacks 1 tensor \(enc.blk.0.ffn_up.weight\)"):
        open_source(path)
    write_decoder(path, make("Llama"), extra={"blk.0.attn_q.bias": torch.zeros(64)})
    with pytest.raises(IncompleteCheckpoint, match=r"unknown 1 tensor \(blk.0.attn_q.bias\)"):
        open_source(path)
    broken = t5()
    broken.encoder.block[0].layer[0].SelfAttention.v.weight.data[3, 5] = torch.nan
    write_t5(path, broken, Kind.F16)
    with pytest.raises(IncompleteCheckpoint, match=r"attn_v\.weight has NaN"):
        states(path)
