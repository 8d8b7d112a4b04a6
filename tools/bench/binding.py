"""Draws prompts with your own checkpoint, adapter and LLM, with and without the LLM's half, on a page to look at.

    python tools/dev.py bench binding --models DIR                      the 60 prompts of dense_prompts.txt
    python tools/dev.py bench binding --models DIR --prompts FILE --seeds 1 2 3 --steps 30

The page `index.html` shows each prompt's pictures of the same seed side by side, at strength 0 (CLIP alone) and 1. It
needs no network. A run that was interrupted goes on with what is missing.
"""

from __future__ import annotations

import argparse
import html
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from host.comfyui import HOST_DIR, HostError, Installation, end_cleanly_when_terminated
from sandbox.client import Client, ExecutionError, ValidationError, image_paths
from sandbox.model_choice import Choice, make_standins, with_present_models
from sandbox.server import Server
from sandbox.workflow import TEXT_TO_IMAGE, Prompt, UnknownNodes, Workflow, read_workflow, to_prompt

PROMPTS = Path(__file__).with_name("dense_prompts.txt")
SETTINGS, PAGE, PICTURES = "settings.json", "index.html", "pictures"
CONDITIONING = "LLM4GEN_Conditioning"
LOADERS = {
    "checkpoint": "CheckpointLoaderSimple",
    "llm": "LLM4GEN_LoadLLMEncoder",
    "adapter": "LLM4GEN_LoadCrossAdapter",
}


@dataclass(frozen=True)
class Drawing:
    """A picture to draw. number: of its prompt in the file, from 1."""

    number: int
    text: str
    strength: float
    seed: int

    @property
    def file(self) -> str:
        return f"{PICTURES}/{self.number:03}_seed{self.seed}_strength{self.strength:g}.png"


def read_prompts(path: Path) -> dict[str, list[str]]:
    """Kind → its prompts, one a line. A line `# kind` begins a kind. Raises: ValueError if there is no prompt."""
    found: dict[str, list[str]] = {}
    kind = ""
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if line.startswith("#"):
            kind = line.lstrip("# ").strip()
        elif line.strip():
            found.setdefault(kind, []).append(line.strip())
    if not found:
        raise ValueError(f"{path} holds no prompt. Write one a line; a line `# kind` begins a new kind.")
    return found


def drawings(
    prompts: dict[str, list[str]], seeds: Sequence[int], strengths: Sequence[float]
) -> list[Drawing]:
    texts = [text for kind in prompts.values() for text in kind]
    return [
        Drawing(number, text, strength, seed)
        for number, text in enumerate(texts, 1)
        for seed in seeds
        for strength in strengths
    ]


def prompt_of(base: Prompt, drawing: Drawing, steps: int | None) -> Prompt:
    """The graph for one picture. The negative prompt gets the same strength. Raises: ValueError."""
    prompt: Prompt = json.loads(json.dumps(base))
    samplers = [node["inputs"] for node in prompt.values() if node["class_type"] == "KSampler"]
    if len(samplers) != 1:
        raise ValueError(f"The workflow has {len(samplers)} KSamplers; one is wanted.")
    (sampler,) = samplers
    for side in ("positive", "negative"):
        node = prompt[sampler[side][0]]
        if node["class_type"] != CONDITIONING:
            raise ValueError(
                f"The KSampler's {side} input comes from {node['class_type']}, not from {CONDITIONING}."
            )
        node["inputs"]["strength"] = drawing.strength
        if side == "positive":
            node["inputs"]["text"] = drawing.text
    sampler["seed"] = drawing.seed
    sampler["steps"] = steps or sampler["steps"]
    return prompt


def choose(workflow: Workflow, names: dict[str, str | None]) -> None:
    """Writes the files that the user names into their loaders."""
    for node in workflow["nodes"]:
        for option, node_type in LOADERS.items():
            if node["type"] == node_type and names[option]:
                node["widgets_values"][0] = names[option]


def page(prompts: dict[str, list[str]], wanted: Sequence[Drawing], chosen: Sequence[Choice]) -> str:
    """The contact sheet."""
    strengths = list(dict.fromkeys(drawing.strength for drawing in wanted))
    heads = "".join(f"<th>strength {strength:g}</th>" for strength in strengths)
    lines = [
        "<!doctype html><meta charset='utf-8'><title>LLM4GEN</title>",
        "<style>body{font:15px sans-serif;margin:2em}img{width:256px}td{vertical-align:top;padding:4px}"
        "caption{text-align:left;font-weight:bold;padding:1em 0 0}.warning{color:#b00}</style>",
        "<h1>With and without the LLM's half</h1>",
        f"<p>{'; '.join(html.escape(str(choice)) for choice in chosen)}.",
        "<p>Strength 0 is CLIP alone, as without this pack.",
    ]
    if any(choice.standin for choice in chosen):
        lines.append(
            "<p class='warning'>Some weights are random stand-ins: these pictures show nothing but that it runs."
        )
    number = 0
    for kind, texts in prompts.items():
        lines.append(f"<h2>{html.escape(kind)}</h2>")
        for text in texts:
            number += 1
            lines.append(
                f"<table><caption>{number}. {html.escape(text)}</caption><tr><th>seed</th>{heads}</tr>"
            )
            lines += rows(drawing for drawing in wanted if drawing.number == number)
            lines.append("</table>")
    return "\n".join(lines)


def rows(of_prompt: Iterator[Drawing]) -> Iterator[str]:
    """A row for each seed."""
    by_seed: dict[int, list[Drawing]] = {}
    for drawing in of_prompt:
        by_seed.setdefault(drawing.seed, []).append(drawing)
    for seed, found in by_seed.items():
        cells = "".join(f"<td><img loading='lazy' src='{drawing.file}' alt=''></td>" for drawing in found)
        yield f"<tr><td>{seed}</td>{cells}</tr>"


def draw(options: argparse.Namespace, host: Installation) -> Path:
    """Draws what is missing, and returns the page. Raises: what the server and the files raise."""
    prompts = read_prompts(options.prompts)
    wanted = drawings(prompts, options.seeds, options.strengths)
    workflow = read_workflow(options.workflow)
    choose(workflow, vars(options))
    out: Path = options.out.resolve()
    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    with Server(host, out / "server", [*options.models, make_standins(host)]) as server:
        client = Client(server.url)
        object_info = client.object_info()
        workflow, chosen = with_present_models(workflow, object_info, options.models)
        base = to_prompt(workflow, object_info)
        keep_or_clear(out, {"graph": base, "steps": options.steps, "prompts": prompts})
        for choice in chosen:
            print(f"  {choice}")
        missing = [drawing for drawing in wanted if not (out / drawing.file).is_file()]
        for place, drawing in enumerate(missing, 1):
            print(f"{place} of {len(missing)}: strength {drawing.strength:g}, {drawing.text}", flush=True)
            (picture,) = image_paths(client.run(prompt_of(base, drawing, options.steps)), server.output)
            shutil.move(picture, out / drawing.file)
    (out / PAGE).write_text(page(prompts, wanted, chosen), encoding="utf-8")
    return out / PAGE


def keep_or_clear(out: Path, settings: dict[str, Any]) -> None:
    """Removes the pictures of another graph, other steps or other prompts."""
    text = json.dumps(settings, sort_keys=True)
    file = out / SETTINGS
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        for picture in (out / PICTURES).glob("*.png"):
            picture.unlink()
        file.write_text(text, encoding="utf-8")


def main() -> int:
    options = parse()
    end_cleanly_when_terminated()
    host = Installation(options.comfyui.absolute(), Path(sys.executable))
    try:
        made = draw(options, host)
    except KeyboardInterrupt:
        return 130
    except (
        HostError,
        UnknownNodes,
        ValidationError,
        ExecutionError,
        ConnectionError,
        ValueError,
        OSError,
    ) as error:
        print(f"bench binding failed: {error}", file=sys.stderr)
        return 1
    print(f"page: {made}")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="bench binding"
    )
    parser.add_argument(
        "--models", type=Path, nargs="*", default=[], metavar="DIR", help="folders with real weights"
    )
    parser.add_argument(
        "--prompts", type=Path, default=PROMPTS, metavar="FILE", help="one a line, under `# kind` lines"
    )
    parser.add_argument(
        "--workflow", type=Path, default=TEXT_TO_IMAGE, metavar="FILE", help="with one KSampler"
    )
    for option in LOADERS:
        parser.add_argument(
            f"--{option}", metavar="NAME", help="as in the node's list (default: the first that fits)"
        )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], metavar="N")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0, 1.0], metavar="X")
    parser.add_argument("--steps", type=int, metavar="N", help="(default: the workflow's)")
    parser.add_argument(
        "--out", type=Path, default=HOST_DIR / "binding", metavar="DIR", help="(default: %(default)s)"
    )
    parser.add_argument("--comfyui", type=Path, required=True, metavar="DIR")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
