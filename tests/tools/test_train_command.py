"""train.py: what the graph gives, over files, in one process or in two."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import in_process
import train as command
from host.comfyui import TOOLS
from llm4gen.models.errors import WrongTraining
from llm4gen.models.training.ranks import ALONE
from paths import COMFYUI, STANDINS
from sandbox.server import HOLDS, held_port
from sandbox.standins import CHECKPOINT, ENCODER
from tiny import equal, relative_error
from training import dry_run
from training.job_file import read_job
from training.pairs import Problems, find_pairs
from training.pictures import open_picture
from training.run_folder import RunFolder, contact_sheet, draw_losses
from training.session import Session, train
from training_inputs import NEW

TEXTS = ["a red cat on a mat", "a blue dog", "a green bird"]
JOB = {
    **{"checkpoint": CHECKPOINT, "llm": ENCODER, "data": "pictures", "resolution": 64},
    "llm_dtype": "fp32",  # as in the graph; some CPUs would compute in bf16
    **NEW,
    **{"steps": 2, "batch_size": 2, "accumulate": 1, "learning_rate": 1e-3, "quiet_start": 0, "seed": 1},
    **{"gradient_checkpointing": False, "save_every": 1, "warm_up": 0},
}


@pytest.fixture(scope="module")
def session(started):
    return Session(started.core, started.ours)


@pytest.fixture
def folder(tmp_path):
    """A job with three pictures, and one that is damaged."""
    (tmp_path / "pictures").mkdir()
    generator = torch.Generator().manual_seed(0)
    for number, text in enumerate(TEXTS):
        pixels = torch.randint(256, (64, 64, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "pictures" / f"{number}.png")
        (tmp_path / "pictures" / f"{number}.txt").write_text(text)
    (tmp_path / "pictures" / "bad.png").write_bytes(b"no picture")
    (tmp_path / "pictures" / "bad.txt").write_text(TEXTS[0])
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))
    return tmp_path


@pytest.fixture
def run(session, folder):
    """Runs the folder's job with some changes: what was trained, and what was left out."""

    def run(*changes):
        job, problems = read_job(folder / "job.yaml", changes, session.schema()), Problems()
        pairs = find_pairs(job["data"], problems)
        watch = RunFolder(job["run"], job, "0").watch
        return train(session, job, pairs, problems, ranks=ALONE, watch=watch), list(problems.lines())

    return run


def weights(trained):
    return dict(trained.adapter.adapter.state_dict())


def test_the_command_gives_the_adapter_that_the_graph_gives(run, session, folder, checkpoint, llm):
    from llm4gen.nodes import train as nodes  # noqa: PLC0415
    from llm4gen.nodes.training.run import train as train_adapter  # noqa: PLC0415

    model, clip, vae = checkpoint
    with torch.inference_mode():
        fresh = in_process.run(nodes.NewCrossAdapter, llm=llm, **NEW | {"seed": 1})
        pictures = [
            torch.frombuffer(
                bytearray(open_picture((folder / "pictures" / f"{n}.png").read_bytes(), 64).tobytes()),
                dtype=torch.uint8,
            )
            for n in range(3)
        ]
        images = [picture.reshape(1, 64, 64, 3) / 255 for picture in pictures]
        found = in_process.run(
            nodes.TrainingSetNode,
            texts=TEXTS,
            clip=[clip],
            llm=[llm],
            adapter=[fresh],
            images=images,
            vae=[vae],
        )
        schema = nodes.TrainCrossAdapter.define_schema().inputs
        inputs = {one.id: JOB.get(one.id, one.default) for one in schema if hasattr(one, "default")}
        job = nodes.job_of(**inputs)
        graph = train_adapter(model, found, fresh, replace(job, settings=replace(job.settings, warm_up=0)))
    trained, left_out = run()
    assert trained.losses == graph.losses
    assert equal(weights(trained), weights(graph))
    said = [json.loads(one.adapter.training)["llm"] for one in (trained, graph)]
    assert said == [llm.llm.file.facts.entry] * 2
    assert left_out == ["left out, unreadable (UnidentifiedImageError): 1 (bad.png)"]


def test_features_are_read_from_the_disk_the_second_time_and_a_damaged_one_is_made_again(
    run, folder, session, monkeypatch
):
    from llm4gen.nodes.managed import ManagedLLM  # noqa: PLC0415

    first, _ = run()
    assert len(list((folder / "run" / "features").iterdir())) == 3 + 3 + 1  # latents, captions and ""
    # A latent: a caption that is read again alone, and not among others, has other digits at the end.
    files = (folder / "run" / "features").iterdir()
    victim = next(file for file in files if "latent" in load_file(file))
    whole = victim.read_bytes()
    victim.write_bytes(whole[:50])
    again, _ = run("resume=false")
    assert equal(weights(first), weights(again))
    assert victim.read_bytes() == whole

    def fail(*_):
        raise AssertionError("the LLM read a caption again")

    monkeypatch.setattr(ManagedLLM, "encode_all", fail)
    assert equal(weights(run("resume=false")[0]), weights(first))


def test_captions_without_padding_are_kept_as_well(run):
    """Their rows and positions are one tensor, which a file would refuse to hold twice."""
    first, _ = run("padding=drop", "drop_clip_tokens=0.5", "weighting=debiased")
    again, _ = run("padding=drop", "drop_clip_tokens=0.5", "weighting=debiased", "resume=false")
    assert first.losses == again.losses and len(set(first.losses)) == 2


def test_pairs_beside_the_pictures_guide_the_attention(run, folder):
    (folder / "pictures" / "0.json").write_text('{"pairs": [["red", "cat"]]}')
    guided, without = run("steps=1", "entity_weight=1", "run=guided")[0], run("steps=1", "run=without")[0]
    assert guided.losses[0] > without.losses[0]
    assert run("steps=2", "entity_weight=1", "run=guided")[0].losses[:1] == guided.losses


SMALL = ("features_gb=0.001", "batch_size=3", "preview_every=0")  # room for "" and two captions


@pytest.fixture
def read_together(monkeypatch):
    """How many captions the LLM reads each time."""
    from llm4gen.nodes.managed import ManagedLLM  # noqa: PLC0415

    sizes, encode_all = [], ManagedLLM.encode_all

    def counted(llm, prompts, recipe):
        sizes.append(len(prompts))
        return encode_all(llm, prompts, recipe)

    monkeypatch.setattr(ManagedLLM, "encode_all", counted)
    return sizes


def test_what_does_not_fit_on_the_disk_is_computed_in_the_steps_and_said_once(
    run, folder, caplog, read_together
):
    """What is learnt is the same but for rounding; a run that goes on is the same to the bit."""
    plain, _ = run("run=plain", *SMALL[1:])
    assert read_together == [len(TEXTS) + 1]
    caplog.clear()
    read_together.clear()
    small, _ = run("run=small", *SMALL)
    assert read_together == [len(TEXTS) + 1, 1], "each step lacks the same caption, so it is read once"
    assert len(list((folder / "small" / "features").iterdir())) == 3
    (said,) = [message for message in caplog.messages if "do not fit" in message]
    seconds = r"\([\d.e-]+ s each\)"
    pattern = f"The features of 1 of 4 captions {seconds} and of 3 of 3 pictures {seconds} do not fit into the 0.001 GB"
    assert re.match(pattern, said)
    assert small.losses == pytest.approx(plain.losses, rel=1e-4)
    for name, weight in weights(small).items():
        if name != "key.bias":  # the true gradient is 0
            assert relative_error(weight, weights(plain)[name]) < 1e-3, name
    run("run=stopped", *SMALL, "steps=1")
    stopped, _ = run("run=stopped", *SMALL)
    assert stopped.losses == small.losses
    assert equal(weights(stopped), weights(small))


def test_a_picture_that_goes_while_its_features_are_computed_in_the_steps_is_named(run, folder, monkeypatch):
    from llm4gen.models.training.trainer import Trainer  # noqa: PLC0415

    step = Trainer.step

    def then_gone(trainer):
        loss = step(trainer)
        (folder / "pictures" / "1.png").unlink(missing_ok=True)
        return loss

    monkeypatch.setattr(Trainer, "step", then_gone)
    with pytest.raises(WrongTraining, match=r"picture 1\.png was there when the training began"):
        run(*SMALL)
    assert (folder / "run" / "state.safetensors").is_file()


def test_a_run_goes_on_where_it_stopped_and_its_folder_says_what_it_did(run, folder):
    run("steps=1", "preview_every=0")
    trained, _ = run("preview_every=1")
    whole, _ = run("run=whole", "preview_every=0")
    assert trained.losses == whole.losses
    assert equal(weights(trained), weights(whole))
    names = {"state.safetensors", "features", "job.yaml", "versions.json", "losses.csv", "losses.png"}
    names |= {"previews", "previews.png"}
    assert [path.name for path in (folder / "run" / "previews").iterdir()] == ["00000002.png"]
    assert {path.name for path in (folder / "run").iterdir()} == names
    rows = (folder / "run" / "losses.csv").read_text().split()
    assert rows[0] == "step,loss"
    assert [float(row.split(",")[1]) for row in rows[1:]] == trained.losses
    again = yaml.safe_load((folder / "run" / "job.yaml").read_text())
    assert again["steps"] == 2
    assert again["data"] == [str(folder / "pictures")]


@pytest.mark.parametrize(
    ("unet", "file"), [("frozen", None), ("LoRA", "lora.safetensors"), ("whole", "unet.safetensors")]
)
def test_what_was_learnt_is_written_as_the_loaders_read_it(run, session, folder, put, started, unet, file):
    trained, _ = run(f"unet={unet}", "rank=4", "steps=1")
    written = RunFolder(folder / "result", {}, "0").write_result(trained)
    assert [path.name for path in written] == ["adapter.safetensors", *([file] if file else [])]
    with safe_open(written[0], framework="pt") as saved:
        assert saved.metadata()["llm4gen_training"] == trained.adapter.training
    if file == "lora.safetensors":
        assert equal(load_file(written[1]), trained.lora)
    if file == "unet.safetensors":
        put("diffusion_models", "by_command.safetensors", load_file(written[1]))
        with torch.inference_mode():
            (loaded,) = started.core.UNETLoader().load_unet("by_command.safetensors", "default")
            noise = torch.randn(1, 4, 8, 8)
            inputs = (noise, torch.tensor([1.0])), {"c_crossattn": torch.randn(1, 77, 768)}
            found = [
                one.clone().model.apply_model(*inputs[0], **inputs[1])
                for one in (ready(loaded), ready(trained.model))
            ]
        assert torch.equal(*found)


def ready(model):
    import comfy.model_management as management  # noqa: PLC0415

    management.load_models_gpu([model])
    return model


def test_what_is_wrong_with_a_job_is_said_before_anything_is_loaded(session, folder):
    changes = (
        "checkpoint=none.safetensors",
        "adapter=x",
        "start_from=y",
        "data=nowhere",
        "teacher_unet_file=z",
    )
    job = read_job(folder / "job.yaml", changes, session.schema())
    assert list(dry_run.problems_of(job, [])) == [
        "checkpoint: ComfyUI's checkpoints folders hold no none.safetensors.",
        "teacher_unet_file: ComfyUI's diffusion_models folders hold no z.",
        "adapter: ComfyUI's llm4gen folders hold no x.",
        "start_from: ComfyUI's llm4gen folders hold no y.",
        "adapter and start_from are both given. adapter is trained further as it is; start_from begins a new one.",
        "There is a teacher_unet_file without a teacher_llm.",
        f"data: there is no {folder / 'nowhere'}.",
        "data: there is no picture with a caption.",
    ]


def test_a_dry_run_says_data_steps_space_and_memory(session, folder):
    job, problems = read_job(folder / "job.yaml", ["unet=whole"], session.schema()), Problems()
    pairs = find_pairs(job["data"], problems)
    lines = list(dry_run.report(job, pairs, problems, session, processes=2))
    assert lines[0] == "data: 4 pictures, 3 different captions"
    assert lines[1] == "steps: 2, which see 8 pictures (2.0 rounds)"
    assert list(dry_run.problems_of(job, pairs)) == []
    assert not any("do not fit" in line for line in lines)
    small = dry_run.report({**job, "features_gb": 0.0005}, pairs, problems, session, processes=2)
    (said,) = [line for line in small if "do not fit" in line]
    assert 0 < int(re.search(r"up to (\d+)% of them", said)[1]) < 100
    header = json.loads((STANDINS / "checkpoints" / CHECKPOINT).read_bytes()[8:].split(b"}}", 1)[0] + b"}}")
    weights = sum(
        torch.Size(entry["shape"]).numel() for name, entry in header.items() if name.startswith(dry_run.UNET)
    )
    assert f"memory: {weights * 20 / 1e9:.2f} GB for the UNet" in lines[-1]


def test_nothing_to_learn_from_is_an_error(run, folder):
    for file in (folder / "pictures").glob("?.png"):
        file.write_bytes(b"no picture")
    with pytest.raises(WrongTraining, match="no picture with a caption"):
        run()


def test_the_losses_are_drawn_whatever_their_number():
    for losses in ([0.5], [0.0] * 3, [1.0, 0.5], [0.1 * n for n in range(5000)]):
        assert draw_losses(losses).size == (960, 480)


def test_a_contact_sheet_holds_the_first_and_later_previews(tmp_path):
    paths = [tmp_path / f"{step:08}.png" for step in range(100)]
    for path in paths:
        Image.new("RGB", (8, 4), "red").save(path)
    for count, rows in ((1, 1), (9, 2), (100, 5)):
        sheet = contact_sheet(paths[:count])
        assert sheet.height == rows * (128 + 14 + 8) + 8
        assert sheet.getpixel((8 + 64, 8 + 14 + 10)) == (255, 0, 0)


def test_two_processes_with_half_of_the_batch_each_equal_one(run, folder, tmp_path):
    """Two processes of accelerate, which talk over gloo, each with a ComfyUI of its own. Some features do not fit."""
    models = tmp_path / "models.yaml"
    keys = ("checkpoints", "text_encoders", "llm4gen")
    models.write_text(yaml.safe_dump({"x": {"base_path": str(STANDINS), **{key: key for key in keys}}}))
    whole, _ = run(
        "run=whole", "batch_size=4", "unet=LoRA", "rank=4", "drop_text=0.3", "drop_llm=0.3", "steps=4"
    )
    arguments = [folder / "job.yaml", "unet=LoRA", "rank=4", "drop_text=0.3", "drop_llm=0.3", "steps=4"]
    arguments += ["features_gb=0.0015", "--comfyui", COMFYUI, "--cpu", "--extra-model-paths-config", models]
    with held_port() as holder:
        shared = {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(holder.getsockname()[1]),
            "OMP_NUM_THREADS": "1",
        }
        if not HOLDS:
            holder.close()
        processes = [
            subprocess.Popen(
                [sys.executable, TOOLS / "train.py", *map(str, arguments)],
                env={
                    **os.environ,
                    **shared,
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "ACCELERATE_USE_CPU": "1",
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(2)
        ]
        outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    written = f"written: {folder / 'run' / 'adapter.safetensors'}"
    assert [written in output for output in outputs] == [True, False]
    assert ["do not fit" in output for output in outputs] == [True, False]
    assert len(list((folder / "run" / "features").iterdir())) > 1
    rows = (folder / "run" / "losses.csv").read_text().split()[1:]
    assert [float(row.split(",")[1]) for row in rows] == pytest.approx(whole.losses, rel=1e-5)
    found = load_file(folder / "run" / "lora.safetensors")
    assert found.keys() == whole.lora.keys()
    for name, weight in found.items():
        assert relative_error(weight, whole.lora[name]) < 1e-4, name


def test_the_command_names_what_it_cannot_use(tmp_path, capsys):
    assert command.main([str(tmp_path / "job.yaml"), "--comfyui", str(tmp_path)]) == 1
    assert "there is no ComfyUI in" in capsys.readouterr().err
    _, changes, extra = command.parse(["job.yaml", "steps=3", "--cpu", "--base-directory", "x", "llm=a=b"])
    assert changes == ["steps=3", "llm=a=b"]
    assert extra == ["--cpu", "--base-directory", "x"]
