"""Files of a training that are damaged in every way that a disk, a download or another program damages them."""

import io
import json
import random
import tarfile

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tiny_training as training
from llm4gen.models.errors import NoSpace, UnusableState
from llm4gen.models.training import stored
from llm4gen.models.training.denoise import Denoise
from llm4gen.models.training.state import STATE_KEY, load_state, save_state, state_of
from llm4gen.models.training.stored import KEY, Store, StoredLatents, StoredTexts
from tiny import equal
from training.pairs import Problems, find_pairs
from training.pictures import UnreadablePicture, open_picture

# What happens to the bytes of a file, given a source of chance. `data` is a bytearray.


def flip(data, chance, times=1, start=0, end=None):
    for _ in range(times):
        data[chance.randrange(start, end or len(data))] ^= 1 << chance.randrange(8)


def insert(data, chance):
    place = chance.randrange(len(data))
    data[place:place] = chance.randbytes(20)


def remove(data, chance):
    place = chance.randrange(len(data) - 1)
    del data[place : place + 50]


def blank(data, chance):
    place = chance.randrange(len(data))
    data[place : place + 30] = bytes(len(data[place : place + 30]))


def cut(data, chance):
    del data[chance.randrange(len(data)) :]


def swap(data, chance):
    half = len(data) // 2
    data[:] = data[half:] + data[:half]


DAMAGES = {
    "one bit": flip,
    "30 bits": lambda data, chance: flip(data, chance, 30),
    "a bit of the header": lambda data, chance: flip(data, chance, end=60),
    "bytes more": insert,
    "bytes less": remove,
    "zeros": blank,
    "cut": cut,
    "halves swapped": swap,
}


def damaged(data, damage, seed):
    found = bytearray(data)
    DAMAGES[damage](found, random.Random(f"{damage} {seed}"))
    assert found != data
    return bytes(found)


# Pictures

PICTURE = Image.effect_noise((40, 56), 80).convert("RGB")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_damaged_picture_is_read_or_unreadable_and_nothing_else(kind, damage):
    """Most formats have no sums, so that a picture with a wrong colour is a picture."""
    file = io.BytesIO()
    PICTURE.save(file, kind)
    for seed in range(4):
        try:
            opened = open_picture(damaged(file.getvalue(), damage, seed), 64)
        except UnreadablePicture:
            continue
        assert opened.mode == "RGB" and all(side % 64 == 0 for side in opened.size)


def test_no_picture_is_handed_to_another_program():
    file = io.BytesIO()
    PICTURE.save(file, "EPS")
    with pytest.raises(UnreadablePicture, match="EPS"):
        open_picture(file.getvalue(), 64)


# Tar files

# Field of a header → where it stands.
FIELDS = {"name": (0, 100), "mode": (100, 108), "size": (124, 136), "time": (136, 148), "kind": (156, 157)}
FIELDS |= {"link": (157, 257), "magic": (257, 265), "prefix": (345, 500)}
VALUES = {
    "zeros": b"\0",
    "ones": b"\xff",
    "negative": b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x80",
    "huge": b"\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff",
    "letters": b"x",
    "spaces": b" ",
    "sevens": b"7",
}


def members_of(tar, kind):
    with tarfile.open(fileobj=tar, mode="w", format=kind) as made:
        for name, content in (("é" * 60 + "/0.png", b"x" * 700), ("é" * 60 + "/0.txt", b"a cat")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))


def with_sum(header):
    """A header's own sum is set right, so that its damage is met."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return header


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["GNU", "PAX"])
def test_a_wrong_field_in_any_header_of_a_tar_file_ends_nothing(tmp_path, kind, field, value):
    tar, (start, end) = io.BytesIO(), FIELDS[field]
    members_of(tar, kind)
    whole = tar.getvalue()
    headers = [place for place in range(0, len(whole), 512) if whole[place + 257 : place + 262] == b"ustar"]
    assert len(headers) >= 4
    PICTURE.save(tmp_path / "good.png")
    (tmp_path / "good.txt").write_text("a good picture")
    for place in headers:
        data = bytearray(whole)
        data[place + start : place + end] = (VALUES[value] * 155)[: end - start]
        data[place : place + 512] = with_sum(data[place : place + 512])
        (tmp_path / "a.tar").write_bytes(data)
        problems = Problems()
        *others, good = find_pairs([tmp_path], problems)
        assert good.caption == "a good picture" and good.picture(64).mode == "RGB"
        for pair in others:
            with pytest.raises(UnreadablePicture):
                pair.picture(64)
        assert all(line.isprintable() for line in problems.lines())


# Names


@pytest.mark.parametrize(
    "name",
    [
        b"\xff",
        b"a\nb",
        b"\x1b[2J",
        b"a\x07",
        b"\xe2\x80\xae",
        b"-rf",
        b"a b",
        b"%s{}",
        "灰猫".encode(),
    ],
    ids=repr,
)
def test_whatever_a_file_is_named_its_picture_is_found_and_the_line_about_it_is_one_line(tmp_path, name):
    path = bytes(tmp_path) + b"/" + name
    try:
        for ending in (b".png", b"-2.png"):
            with open(path + ending, "wb") as file:
                PICTURE.save(file, "PNG")
        with open(path + b".txt", "wb") as file:
            file.write(b"a cat")
    except OSError:
        pytest.skip("NO SUCH NAMES: this file system refuses it.")
    problems = Problems()
    (pair,) = find_pairs([tmp_path], problems)
    assert pair.caption == "a cat" and pair.picture(64).mode == "RGB"
    (line,) = problems.lines()
    assert line.startswith("left out, without a caption: 1 (") and line.isprintable()
    assert name != "灰猫".encode() or "灰猫-2.png" in line


# Features


def features(folder):
    """A store with a text and a latent. Returns what is read from it, and how often something was made."""
    made = []
    store = Store(folder, 10**9)
    texts = StoredTexts(
        store,
        lambda text: ["text", text],
        lambda texts: made.extend(texts) or [(text, training.text(3)) for text in texts],
    )
    latents = StoredLatents(store)
    texts.add_all(["a cat"])
    latent = training.picture(1)
    latents.add(["picture", "0"], lambda: made.append("0") or latent, lambda: tuple(latent.shape))
    read = texts["a cat"]
    assert torch.equal(read.clip, training.text(3).clip)
    assert torch.equal(read.llm.states, training.text(3).llm.states)
    assert torch.equal(read.llm.rows.row_of, training.text(3).llm.rows.row_of)
    assert torch.equal(latents[0], latent)
    return made


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_features_are_made_again(tmp_path, damage):
    """A bit that is wrong in a number would else be learnt from, or give an index that leads nowhere."""
    assert features(tmp_path) == ["a cat", "0"]
    assert features(tmp_path) == []
    whole = {file: file.read_bytes() for file in tmp_path.iterdir()}
    for seed in range(6):
        for file, data in whole.items():
            file.write_bytes(damaged(data, damage, seed))
            assert len(features(tmp_path)) == 1
            assert file.read_bytes() == data


@pytest.mark.parametrize("name", ["clip", "llm", "positions", "row_of", "real", "pairs"])
@pytest.mark.parametrize("change", ["gone", "another kind", "another shape", "another number"])
def test_features_with_a_wrong_tensor_are_made_again(tmp_path, name, change):
    features(tmp_path)
    (file,) = [file for file in tmp_path.iterdir() if "clip" in load_file(file)]
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    tensor = tensors.pop(name)
    if change != "gone":
        others = {"another kind": tensor.to(torch.int16), "another shape": tensor.reshape(-1)[:1].repeat(3)}
        tensors[name] = others.get(change, tensor + 1).contiguous()
    save_file(tensors, file, metadata)
    assert features(tmp_path) == ["a cat"]


def test_features_from_before_there_were_sums_are_used(tmp_path):
    features(tmp_path)
    for file in tmp_path.iterdir():
        with safe_open(file, framework="pt") as opened:
            key = json.loads(opened.metadata()[KEY])["key"]
        save_file(load_file(file), file, {KEY: json.dumps(key)})
    assert features(tmp_path) == []


def test_features_that_cannot_be_written_are_an_error_that_names_the_folder(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(stored, "save_file", full)
    with pytest.raises(NoSpace, match=r"cannot be written to .*Disk quota exceeded.* name another folder"):
        features(tmp_path)


# States


def trainer(steps):
    adapter, unet = training.adapter(), training.SmallUNet()
    return training.trainer(Denoise(unet, training.schedule(), adapter), adapter, steps=steps)


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """The bytes of a state."""
    path, made = tmp_path_factory.mktemp("state") / "state.safetensors", trainer(1)
    made.run()
    save_state(made, path, "a job")
    return path.read_bytes()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_refused_and_changes_nothing(tmp_path, state, damage):
    path, made = tmp_path / "state.safetensors", trainer(2)
    before = {name: tensor.clone() for name, tensor in state_of(made).items()}
    for seed in range(6):
        path.write_bytes(damaged(state, damage, seed))
        with pytest.raises(UnusableState, match=r"state\.safetensors .*(Delete it to|or) start anew"):
            load_state(made, path, "a job")
        assert equal(state_of(made), before)


def test_a_state_from_before_there_were_sums_goes_on(tmp_path, state):
    path, made = tmp_path / "state.safetensors", trainer(2)
    path.write_bytes(state)
    with safe_open(path, framework="pt") as opened:
        entry = json.loads(opened.metadata()[STATE_KEY])
    del entry["sum"]
    save_file(load_file(path), path, {STATE_KEY: json.dumps(entry)})
    load_state(made, path, "a job")
    assert made.steps == 1
