"""What is refused says why: what was found, what is wanted, and what to do. Nothing whole is called damaged."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import tiny
from llm4gen.models.checkpoints.adapter import load_cross_adapter
from llm4gen.models.checkpoints.t5 import recognise_t5
from llm4gen.models.encoders.rows import all_rows, real_rows
from llm4gen.models.errors import IncompleteCheckpoint, UnknownCheckpoint
from llm4gen.models.files.weights import Weights
from llm4gen.models.llm import open_llm
from tiny import load_encoder

IDS = torch.tensor([5, 9, 33, 1])
U8, I8, I16, I32, U32, FP8 = (
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint32, torch.float8_e4m3fn,
)  # fmt: skip
F16, F32 = torch.float16, torch.float32


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The folder of a small Llama."""
    folder = tmp_path_factory.mktemp("llama")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=64, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(llama, tmp_path):
    """A copy of that folder, to be changed: returns a function that takes the new tensors and config entries."""

    def write(tensors, **entries):
        folder = tmp_path / "llm"
        shutil.copytree(llama, folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(config | entries), encoding="utf-8")
        save_file(tensors, folder / "model.safetensors")
        return folder

    return write


@pytest.fixture(scope="module")
def t5():
    return tiny.rankgen_tensors(tiny.t5_encoder(vocab_size=64))


def is_linear(name):
    return name.endswith(("_proj.weight", ".q.weight", ".k.weight", ".v.weight", ".o.weight", "wo.weight"))


def quantise(tensors, entries):
    """Gives each linear layer the entries that a scheme saves in place of its weight, or beside it.

    entries: name → (dtype, shape), as published files have them; of `weight`, None keeps the numbers.
    """
    quantised = {}
    for name, tensor in tensors.items():
        if not is_linear(name):
            quantised[name] = tensor
            continue
        for entry, kind in entries.items():
            value = tensor.to(FP8) if kind is None else torch.ones(kind[1], dtype=kind[0])
            quantised[name.removesuffix("weight") + entry] = value
    return quantised


# What schemes save for a linear layer, what their config.json calls them, and our name in the message.
SCHEMES = {
    "GPTQ": (
        {"qweight": (I32, (4, 32)), "qzeros": (I32, (1, 4)), "scales": (F16, (1, 32)), "g_idx": (I32, 32)}, "gptq"),
    "AWQ": ({"qweight": (I32, (32, 4)), "qzeros": (I32, (1, 4)), "scales": (F16, (1, 32))}, "awq"),
    "bitsandbytes in 4 bits": (
        {"weight": (U8, (512, 1)), "weight.absmax": (F32, 16), "weight.quant_map": (F32, 16),
         "weight.quant_state.bitsandbytes__nf4": (U8, 80)}, "bitsandbytes"),
    "bitsandbytes in 8 bits": ({"weight": (I8, (32, 32)), "SCB": (F32, 32), "weight_format": (U8, ())}, "bitsandbytes"),
    "compressed-tensors": (
        {"weight_packed": (I32, (32, 4)), "weight_scale": (F16, (32, 1)), "weight_shape": (I32, 2)},
        "compressed-tensors"),
    "HQQ": ({"W_q": (U8, (16, 32)), "scale": (F16, (32, 1)), "zero": (F16, (32, 1)), "nbits": (I32, ())}, "hqq"),
    "AQLM": ({"codes": (I16, (32, 4, 1)), "codebooks": (F16, (1, 8, 1, 8)), "scales": (F16, (32, 1, 1, 1))}, "aqlm"),
    "quanto": ({"weight._data": (I8, (32, 32)), "weight._scale": (F16, (32, 1)), "input_scale": (F32, ()),
                "output_scale": (F32, ())}, "quanto"),
    "EETQ": ({"weight": (I8, (32, 32)), "weight_scales": (F16, 32)}, "eetq"),
    "torchao": ({"_weight_qdata": (I8, (32, 32)), "_weight_scale": (F32, (32, 1))}, "torchao"),
    "fp8 with a scale for each block": ({"weight": None, "weight_scale_inv": (F32, (1, 1))}, "fp8"),
    "NVFP4": ({"weight": (U8, (32, 16)), "weight_scale": (FP8, (32, 2)), "weight_scale_2": (F32, ()),
               "input_scale": (F32, ())}, "modelopt"),
    "VPTQ": ({"indices": (I16, (1, 8, 4)), "centroids.weight": (F16, (1, 64))}, "vptq"),
    "ExLlamaV2": ({"q_weight": (I32, (4, 32)), "q_invperm": (I32, 32), "q_scale": (I32, (1, 4)),
                   "q_groups": (I16, 2)}, "exl2"),
    "ExLlamaV3": ({"trellis": (I16, (2, 2, 48)), "suh": (F16, 32), "svh": (F16, 32)}, "exl3"),
    "HIGGS": ({"weight": (I16, (32, 16)), "scales": (F16, (32, 1)), "tables2": (F16, (16, 2))}, "higgs"),
    "SpQR": ({"dense_weights": (I32, 64), "row_offsets": (I32, 33), "in_perm": (I16, 32)}, "spqr"),
    "QuIP#": ({"Qidxs": (I32, (32, 4)), "SU": (F16, 32), "SV": (F16, 32)}, "quip"),
    "an int4 scheme such as GPTQ or AWQ": ({"qweight": (I16, (8, 32)), "scales": (F16, (1, 32)),
                                           "scaled_zeros": (F16, (1, 32))}, "nunchaku"),
}  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantised_weights_are_refused_by_their_scheme(scheme, llama, t5, copy, tmp_path):
    """It is named by the tensors; a config.json is not needed, and says what the publisher calls it."""
    entries, method = SCHEMES[scheme]
    tensors = quantise(load_file(llama / "model.safetensors"), entries)
    with pytest.raises(UnknownCheckpoint) as caught:
        open_llm(copy(tensors, quantization_config={"quant_method": method, "bits": 4}))
    message = str(caught.value)
    first, _, advice = message.partition(". ")
    assert first.startswith(f"llm is quantised with {scheme}") and "model.layers.0." in first
    assert method.lower() in first.lower()
    assert "bf16, fp16 or fp32" in advice and ".gguf" in advice and "damaged" not in message
    save_file(quantise(t5, entries), tmp_path / "t5.safetensors")
    with pytest.raises(UnknownCheckpoint, match=f"^t5.safetensors is quantised with {scheme}: it holds "):
        open_llm(tmp_path / "t5.safetensors")


def test_the_experts_of_gpt_oss_are_refused_by_their_scheme(tmp_path):
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 8,
    }
    config = transformers.GptOssConfig(vocab_size=64, num_local_experts=2, num_key_value_heads=2, **sizes)
    transformers.GptOssForCausalLM(config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    open_llm(tmp_path)
    for name in [name for name in tensors if name.endswith("gate_up_proj")]:
        del tensors[name]
        tensors[f"{name}_blocks"] = torch.ones(2, 64, 1, 16, dtype=U8)
        tensors[f"{name}_scales"] = torch.ones(2, 64, 1, dtype=U8)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        UnknownCheckpoint, match=r"is quantised with MXFP4: it holds 4 tensors .*gate_up_proj_blocks"
    ):
        open_llm(tmp_path)


@pytest.mark.parametrize(
    ("entries", "method"),
    [
        ({"weight": None, "weight_scale": (F32, (32, 1))}, "fbgemm_fp8"),
        ({"weight": (I8, (32, 32)), "weight_scale": (F32, (32, 1))}, "compressed-tensors"),
        ({"weight": (U8, (8, 32)), "weight_scale": (F16, 1)}, "bitnet"),
        ({"weight": (U32, (32, 4)), "scales": (F16, (32, 1)), "biases": (F16, (32, 1))}, "MLX"),
    ],
)
def test_a_scheme_that_its_tensors_do_not_name_is_named_by_the_config(entries, method, llama, copy):
    tensors = quantise(load_file(llama / "model.safetensors"), entries)
    config = (
        {"quantization": {"bits": 4}}
        if method == "MLX"
        else {"quantization_config": {"quant_method": method}}
    )
    folder = copy(tensors, **config)
    with pytest.raises(
        UnknownCheckpoint, match=f"is quantised with {method}: it holds .* Download the model in bf16"
    ):
        open_llm(folder)
    for entry in config:
        config[entry] = None
    shutil.rmtree(folder)
    with pytest.raises(
        IncompleteCheckpoint, match=r"quantised in a way that is not known here\. Download the model in"
    ):
        open_llm(copy(tensors, **config))


def test_fp8_with_a_scale_for_each_matrix_loads_though_its_config_names_a_scheme(llama, copy):
    """As vLLM's tools write it."""
    entries = {"weight": None, "weight_scale": (F32, 1), "input_scale": (F32, 1)}
    tensors = load_file(llama / "model.safetensors")
    for method in ("fp8", "compressed-tensors"):
        folder = copy(quantise(tensors, entries), quantization_config={"quant_method": method})
        states = load_encoder(folder, dtype=torch.float32)(IDS, real_rows(len(IDS)))
        rounded = {name: t.to(FP8).float() if is_linear(name) else t for name, t in tensors.items()}
        shutil.rmtree(folder)
        folder = copy(rounded, quantization_config={"quant_method": method})
        assert torch.equal(load_encoder(folder)(IDS, real_rows(len(IDS))), states)
        shutil.rmtree(folder)


def relatives_of_t5():
    """Kinds of T5 that cannot be computed → their tensors, and what the message says of them."""
    torch.manual_seed(0)
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    umt5 = transformers.UMT5EncoderModel(transformers.UMT5Config(**sizes, vocab_size=256384))
    pile = transformers.UMT5EncoderModel(transformers.UMT5Config(**sizes, vocab_size=32128))
    small = transformers.UMT5EncoderModel(transformers.UMT5Config(**sizes, vocab_size=64))
    first = transformers.T5EncoderModel(transformers.T5Config(**sizes, vocab_size=64))
    wan = {
        "token_embedding.weight": torch.zeros(4, 4),
        "blocks.0.pos_embedding.embedding.weight": torch.zeros(4, 4),
    }
    own = r"position bias of its own \(.*block\.1\..*\); the blocks of T5 v1\.1 share one"
    return {
        "umt5": (tiny.own_tensors(umt5), f"is umT5, each of whose blocks has a {own}"),
        "umt5 of ComfyUI": (
            {f"text_encoders.umt5xxl.transformer.{name}": tensor for name, tensor in tiny.own_tensors(umt5).items()}
            | {"spiece_model": torch.zeros(9, dtype=U8), "scaled_fp8": torch.zeros(2)},
            f"is umT5, each of whose blocks has a {own}",
        ),
        "pile-T5": (tiny.own_tensors(pile), f"is pile-T5, each of whose blocks has a {own}"),
        "another umT5": (tiny.own_tensors(small), f"is a relative of umT5, each of whose blocks has a {own}"),
        "Wan's umT5": (wan, "does not hold a T5 encoder: it holds umT5 as Wan names it"),
        "T5 v1.0": (tiny.own_tensors(first), r"is the first version of T5, .*one wi instead of wi_0 and wi_1"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["umt5", "umt5 of ComfyUI", "pile-T5", "another umT5", "Wan's umT5", "T5 v1.0"]
)
def test_a_relative_of_t5_says_which_it_is_and_why_it_does_not_fit(kind, tmp_path):
    tensors, message = relatives_of_t5()[kind]
    save_file(tensors, tmp_path / "t5.safetensors")
    with pytest.raises(
        UnknownCheckpoint, match=f"^t5.safetensors {message}.*(can be loaded|Put rankgen-t5-xl-all)"
    ):
        open_llm(tmp_path / "t5.safetensors")


def test_ul2_is_refused_by_its_sizes():
    """No tensor shows its activation. The file would have 30 GB, so that only the shapes are made."""
    stem, shapes = (
        "encoder.block.0.layer",
        {"shared.weight": (32128, 4096), "encoder.final_layer_norm.weight": (4096,)},
    )
    shapes |= {f"{stem}.0.SelfAttention.{part}.weight": (4096, 4096) for part in "qkvo"}
    shapes |= {f"{stem}.1.DenseReluDense.{part}.weight": (16384, 4096) for part in ("wi_0", "wi_1")}
    shapes |= {f"{stem}.1.DenseReluDense.wo.weight": (4096, 16384)}
    shapes |= {f"{stem}.{part}.layer_norm.weight": (4096,) for part in (0, 1)}
    shapes |= {f"{stem}.0.SelfAttention.relative_attention_bias.weight": (32, 16)}
    tensors = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    with pytest.raises(
        UnknownCheckpoint, match=r"has the sizes of UL2, whose feed-forward is gated by SiLU.*flan-T5"
    ):
        recognise_t5(Weights(Path("ul2.safetensors"), tensors))


@pytest.mark.parametrize(
    ("kind", "vocabulary"), [("mt5", 250112), ("byt5", 384), ("madlad400", 256000), ("t5", 32128)]
)
def test_a_t5_with_another_vocabulary_is_computed_and_named(kind, vocabulary, tmp_path):
    """Whether it can be used is for its tokenizer to decide."""
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_heads": 2}
    oracle = tiny.t5_encoder(vocab_size=vocabulary, **sizes)
    save_file(tiny.own_tensors(oracle), tmp_path / "t5.safetensors")
    file = open_llm(tmp_path / "t5.safetensors")
    padded = torch.nn.functional.pad(IDS, (0, 4))[None]
    expected = oracle(input_ids=padded, attention_mask=(padded > 0).long()).last_hidden_state[0]
    torch.testing.assert_close(file.load()(IDS, all_rows(len(IDS), 8)), expected, atol=2e-5, rtol=0)
    assert file.kind == kind


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        (
            {"model.layers.0.self_attn.q_proj.weight": torch.zeros(2, 2)},
            "the weights of an LLM without its sizes",
        ),
        (
            {"model.language_model.layers.0.self_attn.q_proj.weight": torch.zeros(2, 2)},
            "the weights of an LLM",
        ),
        ({"text_model.encoder.layers.0.self_attn.q_proj.weight": torch.zeros(2, 2)}, "CLIP's text encoder"),
    ],
)
def test_another_text_encoder_in_one_file_is_refused_by_what_it_is(tensors, found, tmp_path):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(
        UnknownCheckpoint, match=f"it holds {found}.*as a folder with its config.json and tokenizer"
    ):
        open_llm(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "model-00001-of-00002.safetensors",
        "model.fp16-00001-of-00002.safetensors",
        "model-00001-of-00002.fp16.safetensors",
        "pytorch_model-00001-of-00002.bin",
        "diffusion_pytorch_model-00001-of-00002.safetensors",
    ],
)
@pytest.mark.parametrize("model", ["T5", "folder of a T5", "adapter", "LLM"])
def test_one_shard_alone_says_which_part_it_is(name, model, llama, t5, tmp_path):
    whole = {"adapter": tiny.adapter_tensors(), "LLM": load_file(llama / "model.safetensors")}.get(model, t5)
    part = dict(list(whole.items())[: len(whole) // 2])
    folder = tmp_path / "half"
    folder.mkdir()
    (torch.save if name.endswith(".bin") else save_file)(part, folder / name)
    if model == "LLM":
        shutil.copy(llama / "config.json", folder)
    in_folder = model in ("LLM", "folder of a T5")
    with pytest.raises(UnknownCheckpoint) as caught:
        (load_cross_adapter if model == "adapter" else open_llm)(folder if in_folder else folder / name)
    found = f"half holds only {name}, which is" if in_folder else f"{name} is"
    assert str(caught.value).startswith(
        f"{found} part 1 of 2 of a model, and a part alone cannot be loaded. Put all of"
    )
    assert ".index.json" in str(caught.value) and "damaged" not in str(caught.value)


def test_the_only_part_of_a_model_is_the_whole_model(t5, tmp_path):
    save_file(t5, tmp_path / "model-00001-of-00001.safetensors")
    open_llm(tmp_path / "model-00001-of-00001.safetensors")
    save_file(t5, tmp_path / "model-00001-of-00002.safetensors")  # a name alone decides nothing
    open_llm(tmp_path / "model-00001-of-00002.safetensors")


@pytest.mark.parametrize("name", ["lora_A.weight", "lora_up.weight", "lora_A.default.weight"])
def test_a_lora_is_no_model(name, llama, copy):
    base = "base_model.model.model.layers.0.self_attn.q_proj"
    with pytest.raises(
        UnknownCheckpoint, match=r"holds LoRA layers that are not merged into a model.*Merge them first"
    ):
        open_llm(copy({f"{base}.{name}": torch.zeros(4, 32)}))


# Small tensors that published savers add.
EXTRAS = {
    "logit_scale": torch.tensor(4.6),
    "spiece_model": torch.zeros(5000, dtype=U8),
    "global_step": torch.tensor(100000),
    "n_averaged": torch.tensor(7),
    "model_ema.decay": torch.tensor(0.999),
    "embeddings.position_ids": torch.arange(77)[None],
    "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    "h.0.attn.masked_bias": torch.tensor(-1e4),
    "h.0.attn.bias": torch.ones(1, 1, 64, 64).tril(),
    "layers.0.attention.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool).tril(),
}


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_small_extra_tensor_of_a_published_saver_is_no_reason_to_refuse(extra, llama, t5, copy, tmp_path):
    tensors = load_file(llama / "model.safetensors")
    states = load_encoder(llama)(IDS, real_rows(len(IDS)))
    assert torch.equal(
        load_encoder(copy(tensors | {f"model.{extra}": EXTRAS[extra]}))(IDS, real_rows(len(IDS))), states
    )
    save_file(t5 | {extra: EXTRAS[extra]}, tmp_path / "t5.safetensors")
    load_encoder(tmp_path / "t5.safetensors")
    save_file(tiny.adapter_tensors() | {extra: EXTRAS[extra]}, tmp_path / "adapter.safetensors")
    load_cross_adapter(tmp_path / "adapter.safetensors")


@pytest.mark.parametrize(
    "extra",
    [
        {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)},  # small, and it would change every state
        {"model.layers.0.gate": torch.zeros(1)},
        {f"model.layers.{i}.adapter.weight": torch.zeros(32, 32) for i in range(9)},
    ],
)
def test_unknown_weights_are_refused_however_small(extra, llama, copy):
    with pytest.raises(
        IncompleteCheckpoint, match=rf"has unknown {len(extra)} tensor.*the whole model and nothing else"
    ):
        open_llm(copy(load_file(llama / "model.safetensors") | extra))
