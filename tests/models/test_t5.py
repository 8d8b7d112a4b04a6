"""The T5 encoder's hidden states equal those of transformers' T5, for every length, depth, size and dtype."""

import pytest
import torch
from safetensors.torch import save_file

import tiny
from llm4gen.models.encoders.rows import all_rows, distinct_rows, real_rows
from tiny import load_encoder

LENGTH = 256


def transformers_states(oracle, ids, length=LENGTH):
    """transformers' hidden states [length, width] of every layer, for the padded and masked prompt."""
    padded = torch.nn.functional.pad(ids, (0, length - len(ids)))[None]
    mask = (torch.arange(length) < len(ids)).long()[None]
    out = oracle(input_ids=padded, attention_mask=mask, output_hidden_states=True)
    return [layer[0] for layer in out.hidden_states]


def prompt(real):
    """Random ids of `real` tokens."""
    return torch.randint(1, 1000, (real,), generator=torch.Generator().manual_seed(real))


@pytest.fixture(scope="module")
def oracle():
    return tiny.t5_encoder()


@pytest.fixture(scope="module")
def file(oracle, tmp_path_factory):
    path = tmp_path_factory.mktemp("t5") / "rankgen.safetensors"
    save_file(tiny.rankgen_tensors(oracle), path)
    return path


@pytest.fixture(scope="module")
def encoder(file):
    return load_encoder(file)


def test_states_of_distinct_and_of_all_rows_equal_transformers_for_every_length(oracle, encoder):
    for real in range(1, LENGTH + 1):
        ids, expected = prompt(real), transformers_states(oracle, prompt(real))[-1]
        for rows in (distinct_rows(real, LENGTH), all_rows(real, LENGTH)):
            assert (rows.expand(encoder(ids, rows)) - expected).abs().max() <= 2e-5, real


@pytest.mark.parametrize("depth", range(4))
def test_states_of_every_depth_equal_transformers_and_deeper_blocks_are_not_loaded(depth, oracle, file):
    ids, rows = prompt(20), distinct_rows(20, LENGTH)
    encoder = load_encoder(file, depth=depth)
    states = rows.expand(encoder(ids, rows))
    assert len(encoder.blocks) == depth
    torch.testing.assert_close(states, transformers_states(oracle, ids)[depth], atol=2e-5, rtol=0)


def test_without_padding_the_tokens_have_the_same_states(oracle, encoder):
    ids, rows = prompt(20), real_rows(20)
    states = rows.expand(encoder(ids, rows))
    torch.testing.assert_close(states, transformers_states(oracle, ids)[-1][:20], atol=2e-5, rtol=0)


@pytest.mark.parametrize("padding", ["keep", "drop"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_prompts_in_a_batch_have_the_states_that_they_have_alone(padding, dtype, encoder, file):
    """Products in 16 bits may be rounded otherwise in a batch, but they are no further from fp32."""
    rounded = load_encoder(file, dtype=dtype)
    prompts = [prompt(real) for real in (20, 1, 133, LENGTH, 21)]
    rows = [encoder.config.rows(len(ids), LENGTH, padding) for ids in prompts]
    states = rounded.batch(prompts, rows, compute_dtype=dtype)
    for found, ids, plan in zip(states, prompts, rows, strict=True):
        expected = encoder(ids, plan)
        allowed = tiny.relative_error(rounded(ids, plan, compute_dtype=dtype), expected)
        assert tiny.relative_error(found, expected) <= 1.1 * allowed + 1e-5


@pytest.mark.parametrize(
    "sizes", [{"num_layers": 1}, {"d_kv": 16, "num_heads": 2}, {"d_model": 96, "d_ff": 40}]
)
def test_any_model_size_is_measured_from_the_shapes(sizes, tmp_path):
    oracle = tiny.t5_encoder(**sizes)
    save_file(tiny.rankgen_tensors(oracle), tmp_path / "t5.safetensors")
    ids, rows = prompt(9), distinct_rows(9, 64)
    states = rows.expand(load_encoder(tmp_path / "t5.safetensors")(ids, rows))
    torch.testing.assert_close(states, transformers_states(oracle, ids, 64)[-1], atol=2e-5, rtol=0)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """(oracle, file in bf16) of a T5 as deep as T5-XL, so that rounding errors add up as they do there."""
    oracle = tiny.t5_encoder(num_layers=24, d_model=256, d_kv=64, num_heads=4, d_ff=640)
    tensors = {name: t.bfloat16() for name, t in tiny.rankgen_tensors(oracle).items()}
    path = tmp_path_factory.mktemp("deep") / "rankgen.safetensors"
    save_file(tensors, path)
    for weight in oracle.parameters():
        weight.data = weight.bfloat16().float()
    return oracle, path


@pytest.mark.parametrize(
    ("dtype", "compute_dtype", "bound"),
    [
        (torch.float8_e4m3fn, torch.bfloat16, 1.5e-1),
        (torch.bfloat16, torch.bfloat16, 2e-2),
        (torch.bfloat16, torch.float16, 5e-3),
        (torch.float16, torch.float16, 5e-3),
        (torch.float32, torch.float32, 1e-5),
    ],
)
def test_states_of_a_deep_t5_stay_close_in_every_dtype(dtype, compute_dtype, bound, deep):
    oracle, path = deep
    ids, rows = prompt(30), distinct_rows(30, LENGTH)
    encoder = load_encoder(path, dtype=dtype, operations=tiny.CastingLayers)
    states = rows.expand(encoder(ids, rows, compute_dtype=compute_dtype))
    assert tiny.relative_error(states, transformers_states(oracle, ids)[-1]) <= bound


def test_states_with_the_compute_dtype_fp16_stay_close_where_plain_fp16_overflows(tmp_path):
    oracle = tiny.t5_encoder(num_layers=4)
    for block in oracle.encoder.block:  # the feed-forward layers' hidden activations reach about 10^5
        block.layer[1].DenseReluDense.wi_1.weight.data *= 400
        block.layer[1].DenseReluDense.wi_0.weight.data *= 400
    ids, rows = prompt(30), distinct_rows(30, LENGTH)
    expected = transformers_states(oracle, ids)[-1]

    save_file(tiny.rankgen_tensors(oracle), tmp_path / "t5.safetensors")
    encoder = load_encoder(tmp_path / "t5.safetensors", dtype=torch.float16)
    assert tiny.relative_error(rows.expand(encoder(ids, rows, compute_dtype=torch.float16)), expected) <= 5e-3

    fp16 = oracle.half()
    for block in fp16.encoder.block:
        block.layer[1].DenseReluDense.wo.half()  # transformers would keep it in fp32
    assert not transformers_states(fp16, ids)[-1].isfinite().all()


def test_encoding_can_be_interrupted_after_a_block(encoder):
    blocks = []

    def stop():
        blocks.append(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoder(prompt(3), all_rows(3, 8), on_layer=stop)
    assert blocks == [1]
