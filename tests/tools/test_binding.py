"""`bench binding`: prompts drawn with and without the LLM's half, on a page."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from bench import binding
from paths import TOOLS
from sandbox.workflow import TEXT_TO_IMAGE, read_workflow, to_prompt


def test_our_prompts_are_sixty_in_three_kinds():
    prompts = binding.read_prompts(binding.PROMPTS)
    assert {kind: len(texts) for kind, texts in prompts.items()} == {
        "colour": 20,
        "shape and texture": 20,
        "place": 20,
    }
    texts = [text for kind in prompts.values() for text in kind]
    assert len(set(texts)) == 60


def test_a_file_of_prompts_needs_no_kinds_and_an_empty_one_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffa red cat\n\n# place\na cat on a mat\n", encoding="utf-8")
    assert binding.read_prompts(tmp_path / "a.txt") == {"": ["a red cat"], "place": ["a cat on a mat"]}
    (tmp_path / "b.txt").write_text("# colour\n\n")
    with pytest.raises(ValueError, match="holds no prompt"):
        binding.read_prompts(tmp_path / "b.txt")


def test_both_prompts_get_the_strength_and_one_the_text(client):
    base = to_prompt(read_workflow(TEXT_TO_IMAGE), client.object_info())
    before = json.dumps(base)
    drawing = binding.Drawing(3, "a blue cube", 0.0, 42)
    found = binding.prompt_of(base, drawing, steps=7)
    sampler = next(node["inputs"] for node in found.values() if node["class_type"] == "KSampler")
    positive, negative = (found[sampler[side][0]]["inputs"] for side in ("positive", "negative"))
    assert (positive["text"], positive["strength"]) == ("a blue cube", 0.0)
    assert (negative["text"], negative["strength"]) == ("", 0.0)
    assert (sampler["seed"], sampler["steps"]) == (42, 7)
    assert json.dumps(base) == before
    other = {name: node for name, node in base.items() if node["class_type"] != "KSampler"}
    with pytest.raises(ValueError, match="has 0 KSamplers"):
        binding.prompt_of(other, drawing, None)


def test_pictures_of_other_settings_are_removed(tmp_path):
    (tmp_path / "pictures").mkdir()
    picture = tmp_path / "pictures" / "a.png"
    for settings, kept in (({"steps": 1}, False), ({"steps": 1}, True), ({"steps": 2}, False)):
        picture.touch()
        binding.keep_or_clear(tmp_path, settings)
        assert picture.exists() == kept


def test_the_page_shows_each_prompt_at_both_strengths_and_a_run_goes_on_with_what_is_missing(host, tmp_path):
    """With stand-ins, of which the page warns."""
    workflow = read_workflow(TEXT_TO_IMAGE)
    for node in workflow["nodes"]:
        if node["type"] == "EmptyLatentImage":
            node["widgets_values"] = [64, 64, 1]
    (tmp_path / "workflow.json").write_text(json.dumps(workflow))
    (tmp_path / "prompts.txt").write_text("# colour\na red <cat>\n")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "bench.binding", "--comfyui", host.comfyui, "--steps", 1, "--out", out]
    command += ["--workflow", tmp_path / "workflow.json", "--prompts", tmp_path / "prompts.txt"]

    def run():
        done = subprocess.run(
            list(map(str, command)),
            cwd=TOOLS,
            env=host.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run()
    pictures = [out / "pictures" / f"001_seed1_strength{strength}.png" for strength in (0, 1)]
    with Image.open(pictures[0]) as without, Image.open(pictures[1]) as full:
        assert without.size == full.size == (64, 64)
        assert without.tobytes() != full.tobytes()
    page = (out / "index.html").read_text(encoding="utf-8")
    assert [f"src='pictures/{path.name}'" in page for path in pictures] == [True, True]
    assert "a red &lt;cat&gt;" in page
    assert "random stand-ins" in page
    assert "http" not in page
    pictures[1].unlink()
    kept = pictures[0].stat().st_mtime_ns
    assert "1 of 1: strength 1, a red <cat>" in run()
    assert pictures[1].is_file()
    assert pictures[0].stat().st_mtime_ns == kept
