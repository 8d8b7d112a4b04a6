"""Pictures with captions for train.py: where they are found, what is left out, and the size that they get."""

import io
import tarfile

import pytest
from PIL import Image

from training.pairs import Problems, find_pairs
from training.pictures import UnreadablePicture, open_picture, size_for


def picture(size=(70, 90), colour="red", kind="PNG", mode="RGB"):
    data = io.BytesIO()
    Image.new(mode, size, colour).save(data, kind)
    return data.getvalue()


def put(folder, name, caption=b"a red square", data=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(picture() if data is None else data)
    if caption is not None:
        (folder / name).with_suffix(".txt").write_bytes(caption)


def make_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def captions(pairs):
    return [pair.caption for pair in pairs]


def test_pictures_are_found_in_folders_within_folders_in_the_same_order_everywhere(tmp_path):
    put(tmp_path, "b.PNG", b"second")
    put(tmp_path, "a.jpg", b"first", picture(kind="JPEG"))
    put(tmp_path / "sub", "c.webp", "thïrd\r\n".encode(), picture(kind="WEBP"))
    put(tmp_path, ".hidden.png")
    (tmp_path / "notes.md").write_text("no picture")
    problems = Problems()
    assert captions(find_pairs([tmp_path], problems)) == ["first", "second", "thïrd"]
    assert list(problems.lines()) == []


def test_a_folder_named_as_kohyas_scripts_have_it_is_seen_several_times(tmp_path):
    put(tmp_path / "12_cats", "a.png")
    put(tmp_path / "dogs_12", "b.png")
    put(tmp_path / "0_none", "c.png")
    problems = Problems()
    assert sorted(pair.repeats for pair in find_pairs([tmp_path], problems)) == [1, 12]
    assert list(problems.lines()) == ["left out, in a folder whose name says 0 times: 1 (0_none/c.png)"]


def test_what_has_no_usable_caption_is_counted_and_named(tmp_path):
    for number in range(7):
        put(tmp_path, f"{number}.png", None)
    put(tmp_path, "empty.png", b" \n")
    put(tmp_path, "latin.png", "grün".encode("latin-1"))
    put(tmp_path, "good.png", b"\xef\xbb\xbfwith a mark of UTF-8")
    problems = Problems()
    assert captions(find_pairs([tmp_path], problems)) == ["with a mark of UTF-8"]
    assert list(problems.lines()) == [
        "left out, without a caption: 7 (0.png, 1.png, 2.png, 3.png, 4.png and 2 more)",
        "left out, with an empty caption: 1 (empty.png)",
        "left out, with a caption that is not UTF-8: 1 (latin.png)",
    ]


def test_the_files_of_one_name_in_a_tar_file_are_one_pair(tmp_path):
    one, other = picture(colour="red"), picture(colour="blue")
    files = {"x/0.png": one, "x/0.txt": b"red", "x/0.json": b"{}", "x/1.txt": b"blue", "x/1.png": other}
    make_tar(tmp_path / "00000.tar", files | {"x/2.txt": b"no picture", "x/3.png": one})
    problems = Problems()
    found = find_pairs([tmp_path], problems)
    assert captions(found) == ["red", "blue"]
    assert [pair.read() for pair in found] == [one, other]
    assert len({pair.stamp for pair in found}) == 2
    assert list(problems.lines()) == ["left out, without a caption: 1 (00000.tar:x/3.png)"]
    assert captions(find_pairs([tmp_path / "00000.tar"], Problems())) == ["red", "blue"]


def test_words_that_belong_together_stand_in_a_json_beside_the_picture(tmp_path):
    """Other entries are for others, as those of datasets in WebDataset's format."""
    put(tmp_path, "a.png")
    (tmp_path / "a.json").write_text('{"pairs": [["red", "square"]], "width": 5}')
    put(tmp_path, "b.png")
    (tmp_path / "b.json").write_text('{"width": 5}')
    for name, text in (("c", "{"), ("d", '{"pairs": ["red"]}'), ("e", '{"pairs": [["red", 3]]}')):
        put(tmp_path, f"{name}.png")
        (tmp_path / f"{name}.json").write_text(text)
    make_tar(tmp_path / "f.tar", {"0.png": picture(), "0.txt": b"red", "0.json": b'{"pairs": [["a", "b"]]}'})
    problems = Problems()
    words = [pair.words for pair in find_pairs([tmp_path], problems)]
    assert words == [(("red", "square"),), (), (), (), (), (("a", "b"),)]
    (line,) = problems.lines()
    assert line.startswith("without its pairs, ")
    assert line.endswith("3 (c.png, d.png, e.png)")


def test_a_damaged_tar_file_gives_what_stands_before_the_damage(tmp_path):
    make_tar(tmp_path / "a.tar", {"0.png": picture(), "0.txt": b"red", "1.png": picture(), "1.txt": b"blue"})
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(whole[:1100])
    (tmp_path / "b.tar").write_bytes(b"<html>" * 200)
    problems = Problems()
    find_pairs([tmp_path], problems)
    assert "b.tar" in "".join(problems.lines())


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [
        ((1000, 1000), 512, (512, 512)),
        ((2000, 1000), 512, (640, 384)),
        ((1000, 2000), 512, (384, 640)),
        ((10, 10), 512, (512, 512)),
        ((10000, 10), 512, (4096, 64)),
        ((640, 480), 64, (64, 64)),
        ((640, 480), 128, (128, 128)),
    ],
)
def test_a_picture_keeps_its_proportions_in_whole_units_of_the_unet(size, resolution, expected):
    found = size_for(size, resolution)
    assert found == expected
    assert found[0] * found[1] <= resolution**2


def test_hidden_colours_of_a_transparent_picture_are_not_seen():
    data = io.BytesIO()
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(data, "PNG")
    assert open_picture(data.getvalue(), 64).getpixel((5, 5)) == (255, 255, 255)


def test_a_photo_is_turned_as_the_camera_says():
    data, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (256, 128)).save(data, "JPEG", exif=exif)
    width, height = open_picture(data.getvalue(), 128).size
    assert height > width


@pytest.mark.parametrize("data", [b"", b"no picture", picture()[:60], picture(kind="JPEG")[:200]])
def test_a_damaged_picture_has_one_error(data):
    with pytest.raises(UnreadablePicture):
        open_picture(data, 64)
