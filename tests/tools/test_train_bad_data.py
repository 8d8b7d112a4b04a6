"""What is of no use to train.py among pictures, captions, tar files and words is named, and the rest is used."""

import io
import itertools
import json
import random
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from training.pairs import MOST_REPEATS, Problems, find_pairs
from training.pictures import UnreadablePicture, open_picture

GOOD = "a good picture"


def saved(picture, kind="PNG", **options):
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return data.getvalue()


def plain(mode="RGB", size=(64, 64), colour=0):
    return Image.new(mode, size, colour)


def found_beside_a_good_one(folder):
    """The captions that are found, and what is said of the others."""
    (folder / "good.png").write_bytes(saved(plain()))
    (folder / "good.txt").write_text(GOOD)
    problems = Problems()
    pairs = find_pairs([folder], problems)
    assert GOOD in [pair.caption for pair in pairs]
    return [pair for pair in pairs if pair.caption != GOOD], list(problems.lines())


# Pictures

KINDS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width, height):
    """A PNG that says that it is large, and holds next to nothing."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.8])
def test_a_picture_that_is_cut_off_is_unreadable(kind, share):
    whole = saved(NOISE, kind)
    with pytest.raises(UnreadablePicture):
        open_picture(whole[: int(len(whole) * share)], 64)


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 100,
        b"GIF89a",
        b"<html><body>404 Not Found</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        saved(plain())[:33] + b"\xff" * 100,
        bomb(100_000, 100_000),
        bomb(2**31 - 1, 1),
        bomb(0, 0),
        bomb(64, 64),
        saved(plain("F", colour=0.5), "TIFF"),
    ],
    ids=itertools.count(),
)
def test_what_is_no_picture_is_unreadable(data):
    with pytest.raises(UnreadablePicture):
        open_picture(data, 64)


@pytest.mark.parametrize(
    ("picture", "kind"),
    [
        *((plain(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *((plain(mode), "TIFF") for mode in ("1", "L", "CMYK", "YCbCr", "LAB", "I;16", "I")),
        (plain("CMYK"), "JPEG"),
        (plain("L"), "JPEG"),
        (plain(size=(1, 1)), "PNG"),
        (plain(size=(5000, 1)), "PNG"),
        (plain(size=(1, 5000)), "BMP"),
    ],
    ids=lambda value: f"{value.mode} {value.size}" if isinstance(value, Image.Image) else value,
)
def test_a_picture_of_every_mode_and_size_becomes_one_that_the_vae_reads(picture, kind):
    opened = open_picture(saved(picture, kind), 128)
    assert opened.mode == "RGB" and all(side % 64 == 0 for side in opened.size)


def test_of_an_animation_the_first_picture_is_seen():
    frames = [plain(colour=colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        red, _, blue = open_picture(data, 64).getpixel((5, 5))
        assert red > 200 and blue < 50, kind


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_picture_of_16_bits_keeps_its_greys(kind):
    greys = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    picture = Image.fromarray(greys.astype(np.uint16))
    opened = np.asarray(open_picture(saved(picture, kind), 64), dtype=float)
    assert np.abs(opened[..., 0] - greys / 257).max() <= 1


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "webp", "bmp", "gif", "tiff"])
def test_the_ending_of_a_pictures_name_does_not_decide_on_its_format(tmp_path, ending):
    (tmp_path / f"a.{ending}").write_bytes(saved(plain(), "TIFF" if ending == "png" else "PNG"))
    (tmp_path / "a.txt").write_text("a")
    (pair,), problems = found_beside_a_good_one(tmp_path)
    assert pair.picture(64).size == (64, 64) and problems == []


def test_a_picture_that_is_gone_when_it_is_read_is_unreadable(tmp_path):
    (tmp_path / "a.png").write_bytes(saved(plain()))
    (tmp_path / "a.txt").write_text("a")
    (pair,), _ = found_beside_a_good_one(tmp_path)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UnreadablePicture, match="FileNotFoundError"):
        pair.picture(64)


# Captions


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        (None, "without a caption"),
        (b"", "with an empty caption"),
        (b"\xef\xbb\xbf", "with an empty caption"),
        (b" \t\r\n ", "with an empty caption"),
        ("\u3000\u2003".encode(), "with an empty caption"),
        ("a cat".encode("utf-16"), "with a caption that is not UTF-8"),
        ("a cat".encode("utf-16-le"), "with a caption that is not UTF-8"),
        ("a cat".encode("utf-32"), "with a caption that is not UTF-8"),
        ("grün".encode("cp1252"), "with a caption that is not UTF-8"),
        ("灰猫".encode("gb18030"), "with a caption that is not UTF-8"),
        ("猫".encode("shift-jis"), "with a caption that is not UTF-8"),
        (b"a\0b", "with a caption that is not UTF-8"),
        (b"\xed\xa0\x80", "with a caption that is not UTF-8"),
        (b"a cat\xf0\x9f\x98", "with a caption that is not UTF-8"),
        (saved(plain()), "with a caption that is not UTF-8"),
    ],
    ids=itertools.count(),
)
def test_a_caption_of_no_use_is_named(tmp_path, caption, reason):
    (tmp_path / "bad.png").write_bytes(saved(plain()))
    if caption is not None:
        (tmp_path / "bad.txt").write_bytes(caption)
    assert found_beside_a_good_one(tmp_path) == ([], [f"left out, {reason}: 1 (bad.png)"])


@pytest.mark.parametrize(
    "caption", ["x" * 1_000_000, "a\nb", "\u202eright to left", "e\u0301" * 5000, "🐈", "{}"]
)
def test_an_odd_caption_is_taken_as_it_is(tmp_path, caption):
    (tmp_path / "odd.png").write_bytes(saved(plain()))
    (tmp_path / "odd.txt").write_text(caption, encoding="utf-8")
    (pair,), problems = found_beside_a_good_one(tmp_path)
    assert pair.caption == caption and problems == []


def test_a_folder_in_place_of_a_caption_or_picture_is_none(tmp_path):
    (tmp_path / "a.png").write_bytes(saved(plain()))
    for name in ("a.txt", "b.png", "c.tar"):
        (tmp_path / name).mkdir()
    assert found_beside_a_good_one(tmp_path) == ([], ["left out, without a caption: 1 (a.png)"])


def test_a_link_that_leads_nowhere_or_in_a_circle_is_passed_over(tmp_path):
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "within").symlink_to(tmp_path, target_is_directory=True)
    pairs, problems = found_beside_a_good_one(tmp_path)
    assert pairs == [] and problems == []


def test_the_date_in_a_folders_name_is_no_number_of_repeats(tmp_path):
    folder = tmp_path / "20240131_holidays"
    folder.mkdir()
    (folder / "a.png").write_bytes(saved(plain()))
    (folder / "a.txt").write_text("a")
    (pair,), (line,) = found_beside_a_good_one(tmp_path)
    assert pair.repeats == 1
    assert line.startswith(f"seen once, because the number of the folder is above {MOST_REPEATS}: 1 (")


# Words that belong together


@pytest.mark.parametrize(
    "text",
    [
        *("", "nul", "{", "[" * 100_000, "1" * 5000, '{"a": 1, }', "\ufeff\ufeff{}"),
        *("[]", "3", "null", '"red ball"', '[["red", "ball"]]'),
        *(
            json.dumps({"pairs": pairs})
            for pairs in (None, 3, "red: ball", {}, {"red": "ball"}, [3], ["red"], [[]], [["red"]], [None])
        ),
        *(
            json.dumps({"pairs": [[["red"], "ball"]]}),
            json.dumps({"pairs": [["red", ""]]}),
            json.dumps({"pairs": [[" ", "ball"]]}),
            json.dumps({"pairs": [["red", "ball", "blue"]]}),
            json.dumps({"pairs": [["red", "ball"], ["blue", None]]}),
            json.dumps({"pairs": [["red", True]]}),
        ),
    ],
    ids=itertools.count(),
)
def test_words_that_are_no_pairs_are_named_and_the_picture_is_used_without_them(tmp_path, text):
    (tmp_path / "a.png").write_bytes(saved(plain()))
    (tmp_path / "a.txt").write_text("a red ball")
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    (pair,), problems = found_beside_a_good_one(tmp_path)
    assert pair.words == ()
    if text:  # an empty file holds no words
        (line,) = problems
        assert line.startswith("without its pairs, ") and line.endswith(": 1 (a.png)")


# Tar files


def tar_of(path, members, **options):
    """members: name → bytes, or the name of the member that a link leads to."""
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize(
    "folder", ["", "./", "../", "/", "../../etc/", "v1.5/", "a.b/c.d/", "./.hidden/", "x" * 150 + "/"]
)
def test_files_of_one_name_in_a_tar_file_belong_together_in_whatever_folder(tmp_path, folder):
    """Nothing is unpacked, so a name may lead anywhere."""
    picture = saved(plain())
    tar_of(tmp_path / "a.tar", [(f"{folder}0.png", picture), (f"{folder}0.txt", b"a cat")])
    (pair,), problems = found_beside_a_good_one(tmp_path)
    assert (pair.caption, pair.read(), problems) == ("a cat", picture, [])
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar", "good.png", "good.txt"}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([("0.png", b"x")], "left out, without a caption: 1 (a.tar:0.png)"),
        ([("0.png", b"x"), ("0.txt", b"")], "left out, with an empty caption: 1 (a.tar:0.png)"),
        (
            [("0.png", b"x"), ("0.txt", b"\xff")],
            "left out, with a caption that is not UTF-8: 1 (a.tar:0.png)",
        ),
        (
            [("1.txt", b"a"), ("1.png", "0.png")],
            "left out, a link or the like in a tar file: 1 (a.tar:1.png)",
        ),
        (
            [("0.png", b"x"), ("0.txt", b"first"), ("0.txt", b"last")],
            "twice in a tar file, where the last one counts: 1 (a.tar:0.txt)",
        ),
    ],
)
def test_what_is_of_no_use_in_a_tar_file_is_named(tmp_path, members, expected):
    tar_of(tmp_path / "a.tar", members)
    pairs, problems = found_beside_a_good_one(tmp_path)
    assert problems == [expected]
    assert [pair.caption for pair in pairs] == (["last"] if "twice" in expected else [])


def test_a_caption_that_its_tar_file_cuts_off_is_not_learnt_from(tmp_path):
    tar_of(tmp_path / "a.tar", [("0.png", saved(plain())), ("0.txt", b"a cat " * 1000)])
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[: whole.index(b"a cat") + 3000])
    pairs, problems = found_beside_a_good_one(tmp_path)
    assert pairs == []
    assert any(line.startswith("left out, cut off by the end of its tar file: 1") for line in problems)


@pytest.mark.parametrize("content", [b"", b"\0" * 511, b"PK\x03\x04" * 300, b"\x1f\x8b" * 600, b"x" * 5000])
def test_what_is_no_tar_file_is_named(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    pairs, problems = found_beside_a_good_one(tmp_path)
    assert pairs == [] and "a.tar" in problems[0]


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("seed", range(15))
def test_a_tar_file_with_wrong_bytes_ends_nothing(tmp_path, kind, seed):
    """What is found is no picture, and the good one beside it is found too."""
    members = [
        (f"{'long' * 40}é/{n}.{end}", content)
        for n in range(3)
        for end, content in (("png", b"x" * 700), ("txt", b"a"))
    ]
    tar_of(tmp_path / "a.tar", members, format=kind)
    data, chance = bytearray((tmp_path / "a.tar").read_bytes()), random.Random(seed)
    for _ in range(20):
        data[chance.randrange(len(data))] = chance.randrange(256)
    (tmp_path / "a.tar").write_bytes(data[: chance.randrange(len(data) // 2, len(data))])
    pairs, _ = found_beside_a_good_one(tmp_path)
    for pair in pairs:
        with pytest.raises(UnreadablePicture):
            pair.picture(64)
