"""`.gguf` files that cannot be used are refused with an error that names the reason."""

import subprocess
import sys

import pytest
import torch

from bench.gguf_write import t5_tensors, write_gguf
from gguf_files import Kind, make, t5, write_decoder, write_t5
from llm4gen.models.encoders.rows import real_rows
from llm4gen.models.errors import IncompleteCheckpoint, MissingPackage, UnknownCheckpoint, UnreadableFile
from llm4gen.models.llm import open_llm
from paths import ROOT


def test_without_the_package_gguf_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    write_t5(tmp_path / "t5.gguf", t5())
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingPackage, match="pip install gguf"):
        open_llm(tmp_path / "t5.gguf")


def test_the_package_gguf_is_not_imported_before_a_gguf_file_is_opened():
    pack = "import sys, types; pack = types.ModuleType('llm4gen'); pack.__path__ = [sys.argv[1]]; "
    check = "sys.modules['llm4gen'] = pack; import llm4gen.models.llm; sys.exit('gguf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", pack + check, str(ROOT)], check=False).returncode == 0


@pytest.mark.parametrize("length", [0, 10, 300, 2000, -100])
def test_a_damaged_or_cut_file_is_refused(length, tmp_path):
    path = tmp_path / "t5.gguf"
    write_t5(path, t5(), Kind.Q8_0)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UnreadableFile, match=r"t5.gguf \(\d+ bytes\) is damaged, cut short"):
        open_llm(path)


def write_umt5(path):
    """A T5 whose second block has a position bias too."""
    tensors = [
        *t5_tensors(t5(num_layers=2).state_dict().items(), 2),
        ("enc.blk.1.attn_rel_b.weight", torch.zeros(32, 4)),
    ]
    write_gguf(path, "t5encoder", tensors, Kind.F32, {"attention.layer_norm_epsilon": 1e-6})


def test_a_file_that_is_not_supported_is_refused_with_the_reason(tmp_path):
    path = tmp_path / "llm.gguf"
    llama, unsupported = make("Llama"), Kind.Q8_K
    for write, message in (
        (
            lambda: write_t5(path, t5(), arch="mamba"),
            "architecture mamba. As .gguf files, t5, t5encoder, llama",
        ),
        (lambda: write_t5(path, t5(), **{"split.count": 3}), "one of 3 parts"),
        (lambda: write_umt5(path), r"is a relative of umT5, .*enc\.blk\.1\.attn_rel_b\.weight.* share one"),
        (
            lambda: write_t5(path, t5(), **{"attention.layer_norm_epsilon": 1e-5}),
            "epsilon of its norms is 1e-05|epsilon of its norms is 9.99",
        ),
        (lambda: write_t5(path, t5(), without="ffn_gate"), "does not hold an encoder like T5 v1.1's"),
        (lambda: write_t5(path, t5(), unsupported), "quantised as Q8_K, which .* cannot dequantise"),
        (lambda: write_decoder(path, llama, **{"rope.scaling.type": "yarn"}), "positions scaled by yarn"),
        (lambda: write_decoder(path, llama, **{"rope.dimension_count": 8}), "heads that are rotated in part"),
        (
            lambda: write_decoder(path, make("Gemma2", head_dim=16)),
            "attention that is not scaled by its head width",
        ),
    ):
        write()
        with pytest.raises(UnknownCheckpoint, match=message):
            open_llm(path)


def test_a_missing_an_unknown_and_a_non_finite_tensor_are_refused_by_name(tmp_path):
    path = tmp_path / "llm.gguf"
    write_t5(path, t5(), without="ffn_up")
    with pytest.raises(IncompleteCheckpoint, match=r"lacks 1 tensor \(enc.blk.0.ffn_up.weight\)"):
        open_llm(path)
    write_decoder(path, make("Llama"), extra={"blk.0.attn_q.bias": torch.zeros(64)})
    with pytest.raises(IncompleteCheckpoint, match=r"unknown 1 tensor \(blk.0.attn_q.bias\)"):
        open_llm(path)
    damaged = t5()
    damaged.encoder.block[0].layer[0].SelfAttention.v.weight.data[3, 5] = torch.nan
    write_t5(path, damaged, Kind.F16)
    with pytest.raises(IncompleteCheckpoint, match=r"attn_v\.weight has NaN"):
        open_llm(path).load(1)(torch.arange(3), real_rows(3))
