"""The job file of train.py."""

import pytest

from training.job_file import FILES, Key, WrongJob, read_job

LEAST = "checkpoint: a.safetensors\nllm: an llm\ndata: pictures\n"
SCHEMA = FILES | {
    "steps": Key(int, 1000, least=0, most=10_000_000),
    "learning_rate": Key(float, 1e-4, least=1e-8, most=1.0),
    "unet": Key(str, "frozen", options=("frozen", "LoRA", "whole")),
    "resume": Key(bool, True),
}


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
