"""Nodes that treat a CLIP as nodes of popular packs do: a stand-in for those packs, and a node pack for a server.

Each class is one way to encode. None of them knows of LLM4GEN.
"""

from contextlib import contextmanager
from functools import partial

import torch


class EncodeOwnTokens:
    """Encodes tokens of its own, under CLIP's key alone, as BlenderNeko's nodes do."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"clip": ("CLIP",), "text": ("STRING", {"multiline": True})}}

    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "encode", "foreign"

    def encode(self, clip, text):
        tokens = {"l": clip.tokenize(text)["l"]}
        states, pooled = clip.encode_from_tokens(tokens, return_pooled=True)
        return ([[states, {"pooled_output": pooled}]],)


class EncodePastTheCLIP(EncodeOwnTokens):
    """Calls the text encoder inside the CLIP, so that the CLIP itself is not asked."""

    def encode(self, clip, text):
        clip.load_model()
        states, pooled = clip.cond_stage_model.clip_l.encode_token_weights(clip.tokenize(text)["l"])
        return ([[states, {"pooled_output": pooled}]],)


class EncodeJoinedParts(EncodeOwnTokens):
    """Joins the tokens of all parts of a text, key by key, as prompt-control does at BREAK."""

    def encode(self, clip, text):
        first, *rest = (clip.tokenize(part.strip()) for part in text.split("BREAK"))
        for tokens in rest:
            for key in first:
                first[key] = first[key] + tokens[key]
        return (clip.encode_from_tokens_scheduled(first),)


class EncodeListOfTexts(EncodeOwnTokens):
    """Encodes the texts of a schedule in one call, after replacing the tokenizer, as smZNodes does.

    The text is divided at `|` into the texts of the schedule, each with its own entry.
    """

    def encode(self, clip, text):
        texts = text.split("|")
        with texts_as_tokens(clip):
            found = clip.encode_from_tokens(clip.tokenize(texts), return_pooled=True, return_dict=True)
        rows = range(len(texts))
        entries = [
            {k: v[i : i + 1] if isinstance(v, torch.Tensor) else v for k, v in found.items()} for i in rows
        ]
        return ([[entry.pop("cond"), entry] for entry in entries],)


@contextmanager
def texts_as_tokens(clip):
    """A chunk of tokens becomes (ids, weights), each with a row for every text. BREAK begins a new chunk."""
    tokenizer, encoder = clip.tokenizer.clip_l, clip.cond_stage_model.clip_l
    original = tokenizer.tokenize_with_weights

    def tokenize(texts, return_word_ids=False, **kwargs):
        parts = [[original(part)[0] for part in text.split("BREAK")] for text in texts]
        parts = [row + [original("")[0]] * (max(map(len, parts)) - len(row)) for row in parts]
        return [
            (
                [[token for token, _ in chunk] for chunk in chunks],
                [[weight for _, weight in chunk] for chunk in chunks],
            )
            for chunks in zip(*parts, strict=True)
        ]

    def encode(chunks):
        states = []
        for ids, weights in chunks:
            rows = [
                encoder.encode([row]) for row in ids
            ]  # row by row, so that its results do not depend on others
            factors = torch.tensor(weights)[..., None]
            states.append(
                (torch.cat([row[0] for row in rows]) * factors, torch.cat([row[1] for row in rows]))
            )
        return torch.hstack([part for part, _ in states]), states[0][1]

    tokenizer.tokenize_with_weights, encoder.encode_token_weights = tokenize, encode
    try:
        yield
    finally:
        del tokenizer.tokenize_with_weights, encoder.encode_token_weights


class KeysAndValues:
    """Makes CLIP give a key and a value for each token, and the UNet use them, as NegPip does."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "clip": ("CLIP",)}}

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CLIP"), "patch", "foreign"

    def patch(self, model, clip):
        model, clip = model.clone(), clip.clone()
        encoder = clip.patcher.model.clip_l
        clip.patcher.add_object_patch("clip_l.encode_token_weights", partial(self.encode, encoder))
        model.set_model_attn2_patch(lambda q, k, v, options: (q, k[:, 0::2], v[:, 1::2]))
        return model, clip

    @staticmethod
    def encode(encoder, chunks):
        positive = [[(token, abs(weight)) for token, weight in chunk] for chunk in chunks]
        keys, pooled = type(encoder).encode_token_weights(encoder, positive)
        signs = torch.tensor([-1.0 if weight < 0 else 1.0 for chunk in chunks for _, weight in chunk])
        return torch.stack([keys, keys * signs[:, None]], dim=2).flatten(1, 2), pooled


class Couple:
    """Stands for a node that gives regions of the picture their own conditioning inside the UNet's attention."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "positive": ("CONDITIONING",)}}

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "patch", "foreign"

    def patch(self, model, positive):
        return (model,)


class EncodeTwice(EncodeOwnTokens):
    def encode(self, clip, text):
        super().encode(clip, text)
        return super().encode(clip, text)


# The first two have the names of real nodes, because the page recognises nodes of other packs by their names.
NODE_CLASS_MAPPINGS = {
    "BNK_CLIPTextEncodeAdvanced": EncodeOwnTokens,
    "AttentionCouplePPM": Couple,
    "ForeignEncodeTwice": EncodeTwice,
    "ForeignEncodePastTheCLIP": EncodePastTheCLIP,
    "ForeignEncodeJoinedParts": EncodeJoinedParts,
    "ForeignEncodeListOfTexts": EncodeListOfTexts,
    "ForeignKeysAndValues": KeysAndValues,
}
