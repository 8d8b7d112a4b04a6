"""Captions that are read together for a training have the states that they have alone."""

from dataclasses import replace

import pytest
import torch

from llm4gen.models.errors import OutOfMemory
from tiny import relative_error

TEXTS = ["", "a red cat on a blue mat", "a dog " * 20, "a (very:1.5) green bird"]


@pytest.fixture
def reader(started, clip, llm, adapter):
    from llm4gen.nodes.fused_clip import FusedCLIP  # noqa: PLC0415
    from llm4gen.nodes.fusion import Fusion  # noqa: PLC0415
    from llm4gen.nodes.training.reading import Reader  # noqa: PLC0415

    return Reader(FusedCLIP.around(clip, Fusion(llm, adapter)))


@pytest.fixture
def sizes(reader, monkeypatch):
    """How many captions the LLM reads each time, on a machine whose memory ends where a test says."""
    llm = reader.fused.fusion.llm
    encode_all, found = type(llm.llm).encode_all, []
    found_room = {"for": 1000}

    def counted(own, encoder, prompts, *rest, **how):
        found.append(len(prompts))
        if len(prompts) > found_room["for"]:
            raise torch.OutOfMemoryError("made by the test")
        return encode_all(own, encoder, prompts, *rest, **how)

    monkeypatch.setattr(type(llm.llm), "encode_all", counted)
    return found, found_room


def test_captions_read_together_have_the_states_that_they_have_alone(reader, sizes):
    together = dict(reader(TEXTS))
    assert sizes[0] == [2, 2], "256 positions each, and 512 at once on a CPU"
    assert together.keys() == set(TEXTS)
    for text in TEXTS:
        ((_, alone),) = reader([text])
        assert torch.equal(together[text].clip, alone.clip)
        assert relative_error(together[text].llm.states, alone.llm.states) < 1e-3, "they are kept in fp16"
        assert torch.equal(together[text].llm.rows.row_of, alone.llm.rows.row_of)
        assert reader.positions(text) == len(alone.llm.rows.row_of)


@torch.inference_mode()
def test_a_teachers_captions_are_read_together_and_give_what_its_clip_gives_for_each(reader, sizes):
    from llm4gen.nodes.training.teaching import contexts  # noqa: PLC0415

    fused, llm = reader.fused, reader.fused.fusion.llm
    found = contexts(fused, TEXTS)
    assert sizes[0] == [2, 2] and list(found) == TEXTS and llm.read == {}
    for text in TEXTS:
        states, _ = fused.encode_from_tokens(fused.tokenize(text, disable_weights=True), return_pooled=True)
        clip, both = found[text].states[:77], found[text].states
        assert torch.equal(clip, states[0, :77].half()) and both.shape == states[0].shape
        assert relative_error(both, states[0]) < 1e-3, "they are kept in fp16"


def test_a_teacher_without_its_llms_half_reads_with_clip_alone(reader, sizes):
    from llm4gen.nodes.training.teaching import contexts  # noqa: PLC0415

    fused = reader.fused
    without = type(fused).around(fused.plain(), replace(fused.fusion, strength=0.0))
    with torch.inference_mode():
        found = [contexts(clip, TEXTS) for clip in (without, fused.plain())]
    assert sizes[0] == []
    for text in TEXTS:
        assert torch.equal(*(one[text].states for one in found)) and len(found[0][text].states) % 77 == 0


def test_where_memory_ends_captions_are_read_alone(reader, sizes):
    calls, room = sizes
    room["for"] = 1
    assert dict(reader(TEXTS)).keys() == set(TEXTS)
    assert calls == [2, 2, 1, 1] * 2, "once more after other models are unloaded, then each alone"
    room["for"] = 0
    with pytest.raises(OutOfMemory, match="not enough memory for"):
        dict(reader(TEXTS))


def test_captions_of_similar_length_are_grouped_within_the_bound(started):
    from llm4gen.nodes.training.reading import groups  # noqa: PLC0415

    lengths = {"a": 5, "b": 1, "c": 9, "d": 2, "e": 4, "f": 30}
    found = list(groups(lengths, 10))
    assert found == [["b", "d"], ["e", "a"], ["c"], ["f"]]
    assert list(groups({}, 10)) == []
