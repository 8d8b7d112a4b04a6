"""The job file of train.py."""

import pytest

from training.job_file import ADVANCED, FILES, Key, WrongJob, read_job

LEAST = "checkpoint: a.safetensors\nllm: an llm\ndata: pictures\n"
SCHEMA = (
    FILES
    | ADVANCED
    | {
        "steps": Key(int, 1000, least=0, most=10_000_000),
        "learning_rate": Key(float, 1e-4, least=1e-8, most=1.0),
        "unet": Key(str, "frozen", options=("frozen", "LoRA", "whole")),
        "resume": Key(bool, True),
    }
)


@pytest.fixture
def read(tmp_path):
    def read(text, *changes):
        path = tmp_path / "job.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_job(path, changes, SCHEMA)

    return read


def test_what_is_not_given_has_the_nodes_defaults_and_paths_start_at_the_jobs_folder(read, tmp_path):
    job = read(LEAST)
    assert job["steps"] == 1000
    assert job["adapter"] is None
    assert job["data"] == [tmp_path / "pictures"]
    assert job["run"] == tmp_path / "run"
    assert job["features"] is None
    assert job.keys() == SCHEMA.keys()


def test_the_command_line_stands_above_the_file(read, tmp_path):
    job = read(
        LEAST + "steps: 5\n", "steps=7", "learning_rate=1e-3", "unet=LoRA", "resume=false", "data=[x, y]"
    )
    assert (job["steps"], job["learning_rate"], job["unet"], job["resume"]) == (7, 1e-3, "LoRA", False)
    assert job["data"] == [tmp_path / "x", tmp_path / "y"]


@pytest.mark.parametrize(
    ("text", "change", "message"),
    [
        ("llm: x\ndata: y\n", None, "lacks checkpoint"),
        (LEAST + "stepz: 3", None, "no key 'stepz'. Did you mean steps?"),
        (LEAST + "qqqq: 3", None, "no key 'qqqq'. There are checkpoint, "),
        (LEAST, "steps=many", "steps is 'many'; a whole number is wanted"),
        (LEAST, "steps=1.5", "steps is 1.5; a whole number is wanted"),
        (LEAST, "steps=true", "steps is True; a whole number is wanted"),
        (LEAST, "steps=-1", "steps is -1; it must be at least 0 and at most 1e+07"),
        (LEAST, "learning_rate=fast", "learning_rate is 'fast'; a number is wanted"),
        (LEAST, "learning_rate=.nan", "learning_rate is nan; it must be at least 1e-08 and at most 1"),
        (LEAST, "unet=lora", "unet is 'lora'; it can be frozen, LoRA, whole"),
        (LEAST, "resume=3", "resume is 3; true or false is wanted"),
        (LEAST, "data=[]", "data is []; a text or a list of texts is wanted"),
        (LEAST, "data=[1]", "data is [1]; a text or a list of texts is wanted"),
        (LEAST, "llm=7", "llm is 7; a text is wanted"),
        (LEAST, "steps=[1", "steps=[1 is not YAML"),
        ("- a\n- b\n", None, "holds list, not lines"),
        ("a: [", None, "is not YAML"),
        (b"a: \xff\xfe", None, "is not YAML"),
    ],
)
def test_a_job_that_cannot_be_meant_is_refused(read, text, change, message):
    with pytest.raises(WrongJob) as raised:
        read(text, *filter(None, [change]))
    assert message in str(raised.value)


# What no key of a kind can be, as it stands in YAML. Nothing, or null, stands for the default.
WRONG = {
    int: ("many", "1.5", "true", "[1]", "{a: 1}", ".nan", ".inf", "2024-01-31", "1e3"),
    float: ("fast", "true", "[1]", "{a: 1}", ".nan", ".inf", "-.inf", "2024-01-31", "1" + "0" * 400),
    bool: ("3", "maybe", "1.0", "[true]"),
    str: ("7", "true", "[a]", "{a: b}", "2024-01-31", "!!binary aGk=", '"\\ud800"'),
    list: ("7", "true", "[]", "[1]", "{a: b}", "[[a]]", "[null]", "&a [*a]", '["\\udcff"]'),
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key in SCHEMA for value in WRONG[SCHEMA[key].kind]]
)
def test_a_value_of_the_wrong_kind_is_refused_for_every_key(read, key, value):
    with pytest.raises(WrongJob, match=rf"^{key} is .*(wanted|it can be|it must be)"):
        read(LEAST, f"{key}={value}")


@pytest.mark.parametrize("key", [key for key in SCHEMA if SCHEMA[key].least is not None])
def test_a_number_out_of_its_bounds_is_refused_for_every_key(read, key):
    entry = SCHEMA[key]
    numbers = [entry.least - 1] + ([] if entry.most is None else [entry.most + 1])
    for number in numbers:
        with pytest.raises(WrongJob, match=rf"^{key} is .* it must be at least"):
            read(LEAST, f"{key}={number}")


@pytest.mark.parametrize("key", ["data", "run", "features"])
@pytest.mark.parametrize("value", ['""', '"a\\0b"'])
def test_what_is_no_name_of_a_folder_is_refused(read, key, value):
    with pytest.raises(WrongJob, match=rf"^{key} is .*the name of a file or folder is wanted"):
        read(LEAST, f"{key}={value}")


@pytest.mark.parametrize(
    "text",
    [
        *("a: b: c", "\ta: 1", "a: 'x", "a: *b", "{[a]: b}", "a: !!python/object:os.system x", "%FOO\n"),
        *("a: 2024-13-45", "a: !!int x", "a: " + "1" * 5000, "a: " + "[" * 5000, "a: \0", "--- a\n--- b\n"),
        *("3", "a", "[]", "[a: 1]", "2024-01-31", "true", "''"),
        *("", "null", "# nothing", "{}"),
        *("3: a", "null: a", "2024-01-31: a", "? a", "'': a"),
    ],
)
def test_a_text_that_is_no_job_is_refused(read, text):
    with pytest.raises(WrongJob):
        read(text)
