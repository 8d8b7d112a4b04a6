"""A text becomes tokens, and the tokens become hidden states, as an adapter's recipe says."""

import pytest
import torch
import transformers
from safetensors.torch import save_file

import tiny
from llm4gen.models.checkpoints import decoder, t5
from llm4gen.models.errors import MissingTokenizer, UnreadableText, WrongRecipe
from llm4gen.models.llm import LLM, open_llm
from llm4gen.models.recipe import Recipe
from llm4gen.models.tokens import belong_together, load_tokenizer
from paths import T5_TOKENIZER


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    path = tmp_path_factory.mktemp("llm") / "t5.safetensors"
    save_file(tiny.rankgen_tensors(tiny.t5_encoder()), path)
    return LLM(open_llm(path), load_tokenizer(T5_TOKENIZER, tiny.VOCABULARY))


def encode(llm, text, recipe):
    tokens = llm.tokenize(text, recipe)
    encoder = llm.file.load(llm.depth(recipe))
    return llm.encode(encoder, tokens.ids, recipe, device=torch.device("cpu"), compute_dtype=torch.float32)


TEXTS = [
    "",
    " ",
    "a cat",
    "Ein Käfer auf dem Blatt",
    "青い羊と茶色の花瓶",
    "خروف أزرق",
    "🐑🏺👩‍👩‍👧",
    "\n\t a \0 b",
    "x" * 5000,
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("padding", ["keep", "drop"])
def test_any_text_gives_finite_states_of_the_recipes_length(text, padding, llm):
    recipe = Recipe(padding=padding)
    features = encode(llm, text, recipe)
    states = features.rows.expand(features.states)
    tokens = llm.tokenize(text, recipe)
    assert len(states) == (256 if padding == "keep" else len(tokens.ids))
    assert states.isfinite().all()


def test_a_long_prompt_is_cut_and_its_dropped_tokens_are_counted(llm):
    tokens = llm.tokenize("word " * 300, Recipe())
    whole = llm.tokenize("word " * 300, Recipe(tokens=8192))
    assert tokens.ids == whole.ids[:256]
    assert tokens.dropped == len(whole.ids) - 256 - 1 > 0  # the end token is not counted
    assert whole.dropped == 0 and whole.ids[-1] == 1


def test_the_end_token_is_not_counted_among_the_dropped_tokens(llm):
    whole = llm.tokenize("word " * 254, Recipe(tokens=8192))
    assert len(whole.ids) == 257 or len(whole.ids) == 256
    assert llm.tokenize("word " * 254, Recipe(tokens=len(whole.ids) - 1)).dropped == 0
    assert llm.tokenize("word " * 254, Recipe(tokens=len(whole.ids) - 2)).dropped == 1


def test_the_template_is_tokenized_with_the_text(llm):
    assert llm.tokenize("a cat", Recipe()).ids == llm.tokenize("pre a cat", Recipe(template="{text}")).ids


def test_a_layer_is_counted_from_either_end(llm):
    from_start, from_end = (encode(llm, "a cat", Recipe(layer=layer)).states for layer in (1, -3))
    assert torch.equal(from_start, from_end)
    assert not torch.equal(from_start, encode(llm, "a cat", Recipe()).states)


@pytest.mark.parametrize("layer", [4, -5])
def test_a_layer_that_the_encoder_lacks_is_refused(layer, llm):
    with pytest.raises(WrongRecipe, match=f"{layer} of its LLM, but this encoder has 3 layers"):
        encode(llm, "a cat", Recipe(layer=layer))


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(MissingTokenizer, match="holds no tokenizer"):
        load_tokenizer(tmp_path, tiny.VOCABULARY)
    for damaged in ("", "[]", '{"version": "1.0", "model"'):
        (tmp_path / "tokenizer.json").write_text(damaged, encoding="utf-8")
        with pytest.raises(MissingTokenizer, match="cannot be read"):
            load_tokenizer(tmp_path, tiny.VOCABULARY)
    for vocabulary in (32000, 64000):
        with pytest.raises(MissingTokenizer, match=f"32100 tokens, but the encoder has {vocabulary}"):
            load_tokenizer(T5_TOKENIZER, vocabulary)


# Published models: tokens of the tokenizer, and rows of the embedding.
SIZES = {
    "T5 v1.1": (32100, 32128),
    "Llama 2": (32000, 32000),
    "Llama 3": (128256, 128256),
    "Mistral 7B v0.3": (32768, 32768),
    "Qwen2.5 0.5B": (151665, 151936),
    "Qwen2.5 7B": (151665, 152064),
    "Qwen3": (151669, 151936),
    "Gemma 2": (256000, 256000),
    "Gemma 3 1B": (262145, 262144),
    "Phi-2": (50295, 51200),
    "Phi-3 mini": (32011, 32064),
    "SmolLM2": (49152, 49152),
    "GPT-2": (50257, 50257),
    "Pythia 12B": (50277, 50688),
    "OPT": (50265, 50272),
    "BLOOM": (250680, 250880),
    "DeepSeek 7B": (100015, 102400),
    "StableLM 2": (100289, 100352),
}


@pytest.mark.parametrize("model", SIZES)
def test_a_published_tokenizer_belongs_to_its_embedding(model):
    tokens, rows = SIZES[model]
    assert belong_together(tokens, rows, max(0, tokens - rows))


@pytest.mark.parametrize(
    ("one", "other"),
    [("T5 v1.1", "Llama 2"), ("GPT-2", "Llama 2"), ("Llama 2", "Llama 3"), ("Phi-2", "SmolLM2")],
)
def test_a_tokenizer_of_another_model_is_refused_by_its_size(one, other):
    tokens, rows = SIZES[one][0], SIZES[other][1]
    assert not belong_together(tokens, rows, max(0, tokens - rows))


def test_tokens_of_the_vocabulary_itself_need_an_embedding():
    assert not belong_together(401, 400, added=0)


def test_a_token_without_an_embedding_is_refused_in_a_prompt(llm):
    added = load_tokenizer(T5_TOKENIZER, tiny.VOCABULARY)
    added.add_special_tokens({"additional_special_tokens": [f"<new_{i}>" for i in range(40)]})
    with_added = LLM(llm.file, added)
    with pytest.raises(UnreadableText, match=r"<new_39>.* has embeddings for \d+ tokens only.*remove it"):
        with_added.tokenize("a <new_39> cat", Recipe())
    assert with_added.tokenize("a cat", Recipe()).ids == llm.tokenize("a cat", Recipe()).ids


@pytest.mark.parametrize("kind", ["T5", "folder of a decoder", "GGUF"])
def test_a_file_is_recognised_once_for_all_prompts_and_depths(kind, tmp_path, monkeypatch):
    if kind == "T5":
        path = tmp_path / "t5.safetensors"
        save_file(tiny.rankgen_tensors(tiny.t5_encoder()), path)
    elif kind == "GGUF":
        gguf_files = pytest.importorskip("gguf_files")
        path = tmp_path / "llama.gguf"
        gguf_files.write_decoder(path, gguf_files.make("Llama", vocab_size=tiny.VOCABULARY))
    else:
        path = tmp_path
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
        config = transformers.LlamaConfig(vocab_size=tiny.VOCABULARY, **sizes)
        transformers.LlamaForCausalLM(config).save_pretrained(path)

    recognised = []
    for module in (t5, decoder):

        def check_and_count(blueprint, *arguments, check=module.check_names):
            recognised.append(type(blueprint).__name__)
            check(blueprint, *arguments)

        monkeypatch.setattr(module, "check_names", check_and_count)

    llm = LLM(open_llm(path), load_tokenizer(T5_TOKENIZER, tiny.VOCABULARY))
    for text in ("a cat", "two dogs"):
        for layer in (-1, -2):
            assert encode(llm, text, Recipe(layer=layer, padding="drop")).states.isfinite().all()
    assert recognised == ["T5Encoder" if kind == "T5" else "Decoder"]
