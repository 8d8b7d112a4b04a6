"""The files that the pack needs from the hub, and where they belong in ComfyUI's model folders."""

from __future__ import annotations

from dataclasses import dataclass

LLM4GEN = "Shui-VL/LLM4GEN-models"
RANKGEN = "kalpeshk2011/rankgen-t5-xl-all"
# The commit to download from each repository, if one is known to be good; None is the newest commit.
PINNED: dict[str, str | None] = {LLM4GEN: None, RANKGEN: None}
DEFAULT_DTYPE = "bf16"
AMBIGUOUS = "pytorch_model.bin"  # many different models are published under this name


@dataclass(frozen=True)
class Item:
    """A file that the pack needs.

    name:         what the command line calls it.
    model_kind:   how the converter describes the model; None if the file is used as it is published.
    repository:   where it is published.
    remote_path:  its path there, or the path of the folder that holds it, which ends in `/`.
    folder_key:   ComfyUI's name of the model folder that it belongs to.
    target_stem:  its new name without the suffix, with `{dtype}` if the user can choose one.
    manual_name:  the name that a user who downloads it by hand saves it under.
    about_bytes:  its approximate size, if known.
    other_names:  further names under which a user may have it.
    """

    name: str
    model_kind: str | None
    repository: str
    remote_path: str
    folder_key: str
    target_stem: str
    manual_name: str
    about_bytes: int | None = None
    other_names: tuple[str, ...] = ()

    @property
    def is_converted(self) -> bool:
        return self.model_kind is not None

    @property
    def is_in_folder(self) -> bool:
        """Whether only the file's folder in the repository is known."""
        return self.remote_path.endswith("/")

    def target_dtype(self, dtype: str | None) -> str | None:
        """The dtype to convert to; None keeps the file's own. dtype: the user's choice, if there was one."""
        return (dtype or DEFAULT_DTYPE) if "{dtype}" in self.target_stem else None

    def target_name(self, dtype: str | None, published_suffix: str = ".safetensors") -> str:
        """The file's name in the model folder. dtype: the user's choice, if there was one."""
        stem = self.target_stem.format(dtype=dtype or DEFAULT_DTYPE)
        return stem + (".safetensors" if self.is_converted else published_suffix)

    def possible_names(self, dtype: str | None) -> list[str]:
        """The names under which the user may have the file already. dtype: None if any dtype will do."""
        from llm4gen.models.files.formats import DTYPE_NAMES  # noqa: PLC0415

        dtypes = [dtype] if dtype else [DEFAULT_DTYPE, *DTYPE_NAMES]
        targets = [self.target_name(name, suffix) for name in dtypes for suffix in (".safetensors", ".bin")]
        return list(dict.fromkeys([*targets, self.manual_name, *self.other_names]))


ITEMS = {
    item.name: item
    for item in (
        Item(
            name="adapter",
            model_kind="Cross-Adapter",
            repository=LLM4GEN,
            remote_path="projector.pth",
            folder_key="llm4gen",
            target_stem="projector",
            manual_name="projector.pth",
            about_bytes=34_700_000,
            other_names=("projector-fp32.safetensors",),
        ),
        Item(
            name="encoder",
            model_kind="T5 encoder",
            repository=RANKGEN,
            remote_path="pytorch_model.bin",
            folder_key="text_encoders",
            target_stem="rankgen-t5-xl-all-{dtype}",
            manual_name="rankgen-t5-xl-all.bin",
            about_bytes=4_910_000_000,
            other_names=(AMBIGUOUS,),
        ),
        Item(
            name="unet",
            model_kind=None,
            repository=LLM4GEN,
            remote_path="unet/",
            folder_key="diffusion_models",
            target_stem="llm4gen_sd15_unet",
            manual_name="llm4gen_sd15_unet.safetensors",
        ),
    )
}
