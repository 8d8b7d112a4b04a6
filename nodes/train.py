"""The nodes that train: New Cross-Adapter, Training Set, Train Cross-Adapter and Save Cross-Adapter."""

from __future__ import annotations

import json

import torch
from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..models.checkpoints.adapter import TRAINING_KEY, save_cross_adapter
from ..models.cross_adapter import CrossAdapterConfig
from ..models.errors import WrongTraining
from ..models.recipe import Recipe
from ..models.training.start import adapter_from, new_adapter
from . import folders, sockets
from .fusion import Fusion
from .managed import ManagedAdapter
from .training.data import latents_of, training_set
from .training.job import job_inputs, job_of, late_inputs, seed_input
from .training.run import train

SD15_WIDTH = 768  # of the context of SD1.5's UNet
NO_LORA = (
    "Train Cross-Adapter has learnt no LoRA, because its input unet is {unet}. Choose LoRA there to learn one, or "
    "disconnect its output lora. What it has learnt is in its outputs adapter and model."
)


class NewCrossAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GEN_NewCrossAdapter",
            display_name="New Cross-Adapter",
            category="LLM4GEN/training",
            description="Makes a Cross-Adapter for an LLM, to be trained: with random weights, or from a loaded one. "
            "Untrained, it spoils pictures.",
            search_aliases=["LLM4GEN", "train adapter", "projector"],
            inputs=[
                sockets.LLM.Input(
                    "llm", tooltip="From Load LLM Encoder: the LLM that the adapter is made for."
                ),
                io.String.Input(
                    "template",
                    multiline=True,
                    default="{text}",
                    tooltip="What the LLM reads. The word text in braces stands for the prompt, the word system in "
                    "braces for the system text.",
                ),
                io.String.Input(
                    "system",
                    multiline=True,
                    default="",
                    tooltip="The system text of an instruction-tuned LLM. Leave it empty if the template has no "
                    "place for it.",
                ),
                io.Int.Input(
                    "tokens",
                    default=128,
                    min=1,
                    max=8192,
                    tooltip="Length of the LLM's sequence. Longer prompts are cut, shorter ones padded.",
                ),
                io.Combo.Input(
                    "padding",
                    options=["keep", "drop"],
                    default="keep",
                    tooltip="keep: the padded positions reach the UNet too, so all prompts are equally long. drop: "
                    "they do not, and prompts of unequal length take two passes a step.",
                ),
                io.Int.Input(
                    "layer",
                    default=-1,
                    min=-512,
                    max=512,
                    tooltip="Which of the LLM's hidden states the adapter gets: -1 is the last, 0 the embeddings, i "
                    "the state after block i.",
                ),
                io.Int.Input("heads", default=8, min=1, max=128, tooltip="Attention heads of the adapter."),
                io.Int.Input(
                    "mlp_dim",
                    default=3072,
                    min=1,
                    max=65536,
                    tooltip="Inner width of the adapter's feed-forward. 768 makes a file of half the size.",
                ),
                seed_input("Decides on the random weights."),
                sockets.ADAPTER.Input(
                    "start_from",
                    optional=True,
                    tooltip="A trained adapter to start from. It keeps its heads and mlp_dim; its first layer is drawn "
                    "anew if the LLM has another width.",
                ),
                io.Int.Input(
                    "context_width",
                    default=SD15_WIDTH,
                    min=1,
                    max=65536,
                    optional=True,
                    advanced=True,
                    tooltip="Width of the UNet's context: 768 for SD1.5, 1024 for SD2, 2048 for SDXL, 1280 for its "
                    "refiner. An adapter in start_from keeps its own.",
                ),
            ],
            outputs=[sockets.ADAPTER.Output(tooltip="Connect it to Training Set and Train Cross-Adapter.")],
        )

    @classmethod
    def execute(
        cls, llm, heads, mlp_dim, seed, start_from=None, context_width=SD15_WIDTH, **reading
    ) -> io.NodeOutput:
        recipe = Recipe(**reading, heads=heads if start_from is None else start_from.adapter.config.heads)
        llm.llm.depth(recipe)  # raises WrongRecipe for a layer that the LLM does not have
        with torch.inference_mode(False):
            if start_from is None:
                adapter = new_adapter(CrossAdapterConfig(context_width, llm.width, mlp_dim, heads), seed)
            else:
                adapter = adapter_from(start_from.adapter, llm.width, seed)
            return io.NodeOutput(
                ManagedAdapter.holding(
                    adapter.state_dict(),
                    adapter.config,
                    recipe,
                    is_new=start_from is None,
                    is_drawn=start_from is None or start_from.adapter.config.llm_dim != llm.width,
                )
            )


class TrainingSetNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GEN_TrainingSet",
            display_name="Training Set",
            category="LLM4GEN/training",
            description="Reads pictures and their captions once, with the VAE, CLIP and the LLM, for Train "
            "Cross-Adapter.",
            search_aliases=["LLM4GEN", "dataset", "captions"],
            is_input_list=True,
            inputs=[
                io.String.Input(
                    "texts",
                    force_input=True,
                    tooltip="A caption for each picture, from Load Image-Text (from Folder). Parentheses are ordinary "
                    "characters here.",
                ),
                io.Clip.Input("clip", tooltip="The CLIP of the checkpoint that the adapter is trained for."),
                sockets.LLM.Input("llm", tooltip="From Load LLM Encoder."),
                sockets.ADAPTER.Input(
                    "adapter", tooltip="The adapter that is trained: it says how the LLM is to read."
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Pictures of any sizes. Their sides should be multiples of 64. Needs vae.",
                ),
                io.Vae.Input("vae", optional=True, tooltip="The VAE of the checkpoint, for images."),
                io.Latent.Input("latents", optional=True, tooltip="Latents in place of images and vae."),
                io.String.Input(
                    "pairs",
                    optional=True,
                    force_input=True,
                    tooltip="For each caption its attributes with their entities, such as red: ball; blue: cube. Only "
                    "the entity-guided loss of Train Cross-Adapter needs them.",
                ),
            ],
            outputs=[sockets.TRAINING_SET.Output(tooltip="Connect it to Train Cross-Adapter.")],
        )

    @classmethod
    def execute(
        cls, texts, clip, llm, adapter, images=None, vae=None, latents=None, pairs=()
    ) -> io.NodeOutput:
        if (images is None) == (latents is None) or (images is not None and vae is None):
            raise WrongTraining("Connect either images and vae, or latents.")
        if vae and vae[0] is None:
            raise WrongTraining(
                "The vae input got no VAE: the checkpoint holds none. Connect one from Load VAE."
            )
        found = (
            latents_of(images, vae[0])
            if latents is None
            else [one for latent in latents for one in latent["samples"]]
        )
        return io.NodeOutput(training_set(found, texts, Fusion(llm[0], adapter[0]), clip[0], pairs))


class TrainCrossAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GEN_TrainCrossAdapter",
            display_name="Train Cross-Adapter",
            category="LLM4GEN/training",
            description="Trains a Cross-Adapter for a model of SD1.5, SD2 or SDXL, alone, with a LoRA for its UNet, or "
            "with the UNet. Cancel keeps what was learnt: run it again to go on.",
            search_aliases=["LLM4GEN", "train", "finetune", "distill"],
            inputs=[*model_inputs(), *job_inputs(), *teacher_inputs(), *late_inputs()],
            outputs=[
                sockets.ADAPTER.Output(tooltip="The trained adapter. Connect it to Save Cross-Adapter."),
                sockets.LORA_MODEL.Output(
                    display_name="lora",
                    tooltip="The UNet's LoRA, for Save LoRA Weights. If unet is not LoRA, the node that is connected "
                    "here says so.",
                ),
                io.Model.Output(
                    tooltip="The model that belongs to the adapter: with the LoRA or the UNet that learnt. Save Model "
                    "keeps it."
                ),
                sockets.LOSS_MAP.Output(
                    display_name="loss_map", tooltip="The loss of each step, for Plot Loss Graph."
                ),
                io.Int.Output(
                    display_name="steps", tooltip="How many steps the adapter has been trained for."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model, training_set, adapter, teacher_clip=None, teacher_model=None, **inputs
    ) -> io.NodeOutput:
        trained = train(
            model,
            training_set,
            adapter,
            job_of(**inputs),
            teacher_clip=teacher_clip,
            teacher_model=teacher_model,
        )
        # What is connected to `lora` would save an empty file. Blocked, it says why, and all other nodes run.
        lora = trained.lora or ExecutionBlocker(NO_LORA.format(unet=inputs["unet"]))
        losses = trained.losses
        return io.NodeOutput(trained.adapter, lora, trained.model, {"loss": losses}, len(losses))


class SaveCrossAdapter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LLM4GEN_SaveCrossAdapter",
            display_name="Save Cross-Adapter",
            category="LLM4GEN/training",
            description="Writes a Cross-Adapter to models/llm4gen. After a refresh (R), Load Cross-Adapter lists it.",
            search_aliases=["LLM4GEN", "export adapter"],
            is_output_node=True,
            inputs=[
                sockets.ADAPTER.Input("adapter", tooltip="From Train Cross-Adapter, or any other."),
                io.String.Input(
                    "prefix",
                    default="my_adapter",
                    tooltip="The file's name, which gets a number. A folder may stand in front.",
                ),
                io.String.Input(
                    "notes",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="Kept in the file, such as a licence or trigger words.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, adapter, prefix, notes="") -> io.NodeOutput:
        if adapter.is_new:
            raise WrongTraining(
                "This adapter has not been trained. Connect the one that Train Cross-Adapter gives."
            )
        entry = {**json.loads(adapter.training or "{}"), **({"notes": notes} if notes else {})}
        metadata = {TRAINING_KEY: json.dumps(entry)} if entry else {}
        path = folders.new_adapter_file(prefix)
        save_cross_adapter(adapter.adapter, adapter.recipe, path, metadata)
        return io.NodeOutput(ui={"text": [path.name]})


def model_inputs() -> list[io.Input]:
    return [
        io.Model.Input(
            "model",
            tooltip="A model of SD1.5, SD2 or SDXL from Load Checkpoint or Load Diffusion Model, with or without LoRA.",
        ),
        sockets.TRAINING_SET.Input("training_set", tooltip="From Training Set."),
        sockets.ADAPTER.Input(
            "adapter", tooltip="From New Cross-Adapter, or from Load Cross-Adapter to train it further."
        ),
    ]


def teacher_inputs() -> list[io.Input]:
    return [
        io.Clip.Input(
            "teacher_clip",
            optional=True,
            tooltip="Trains towards a teacher in place of the pictures: LLM4GEN CLIP with another LLM and its adapter.",
        ),
        io.Model.Input(
            "teacher_model",
            optional=True,
            tooltip="The teacher's own model, if it is not the one that is trained.",
        ),
    ]
