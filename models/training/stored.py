"""Features of a data set on disk: computed once, and mapped when a step needs them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..encoders.rows import Rows
from ..errors import NoSpace, words_of
from ..features.features import Features
from ..files.atomic import written_whole
from ..files.sums import sum_of
from .data import EncodedText

KEY = "llm4gen_features"  # the metadata entry that says what a file holds, and the sum of its tensors
SPARE = 2 << 30  # bytes of the disk that are left to other programs


class Store:
    """Tensors by key, one file each in a folder, which several processes may fill at the same time.

    limit: bytes that the folder may hold.
    Raises, when it is written to: NoSpace if the limit or the end of the disk is reached.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit
        self.sound: set[Path] = set()  # files whose tensors were found as they were written
        folder.mkdir(parents=True, exist_ok=True)
        self.size = sum(file.stat().st_size for file in folder.iterdir())

    def get(self, key: Sequence[str]) -> dict[str, Tensor] | None:
        """The tensors, mapped from their file. None if there is none, if it cannot be read, or if it is damaged."""
        path = self.path(key)
        try:
            with safe_open(path, framework="pt") as file:
                entry = (file.metadata() or {}).get(KEY)
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (OSError, SafetensorError):
            return None
        if path not in self.sound:
            if entry not in (
                entry_of(key, sum_of(found)),
                json.dumps(key),
            ):  # the last as before there were sums
                return None
            self.sound.add(path)
        return found

    def kept(self, key: Sequence[str], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors of a key, which are made and written if the store does not have them."""
        found = self.get(key)
        if found is None:
            found = {name: tensor.contiguous() for name, tensor in make().items()}
            self.put(key, found)
        return found

    def put(self, key: Sequence[str], tensors: dict[str, Tensor]) -> None:
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if self.size + size > self.limit:
            raise NoSpace(
                f"The features in {self.folder} would take more than the {self.limit / 1e9:.0f} GB that they may. "
                "Allow more, delete features of other data, or train on fewer pictures."
            )
        if shutil.disk_usage(self.folder).free < size + SPARE:
            raise NoSpace(f"The disk of {self.folder}, which holds the features, is full. Free some of it.")
        try:
            with written_whole(self.path(key)) as unfinished:
                save_file(tensors, unfinished, {KEY: entry_of(key, sum_of(tensors))})
        except (OSError, SafetensorError) as error:
            raise NoSpace(
                f"Features cannot be written to {self.folder} ({words_of(error)}). Free some of that disk, or name "
                "another folder."
            ) from error
        self.size += size

    def path(self, key: Sequence[str]) -> Path:
        return self.folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.safetensors"


def entry_of(key: Sequence[str], total: int) -> str:
    return json.dumps({"key": key, "sum": total})


class StoredTexts(Mapping[str, EncodedText]):
    """Text → its states.

    key:    everything that decides on them: the LLM, the recipe, CLIP, the text itself.
    encode: makes them.
    """

    def __init__(
        self, store: Store, key: Callable[[str], Sequence[str]], encode: Callable[[str], EncodedText]
    ):
        self.store, self.key, self.encode = store, key, encode
        self.texts: dict[str, None] = {}

    def add(self, text: str) -> EncodedText:
        """Makes sure that the store has a text's states, and returns them."""
        found = self[text]
        self.texts[text] = None
        return found

    def __getitem__(self, text: str) -> EncodedText:
        return unpacked(self.store.kept(self.key(text), lambda: packed(self.encode(text))))

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __len__(self) -> int:
        return len(self.texts)


class StoredLatents(Sequence[Tensor]):
    """Latents by the keys of their pictures."""

    def __init__(self, store: Store):
        self.store = store
        self.keys: list[Sequence[str]] = []

    def add(self, key: Sequence[str], encode: Callable[[], Tensor], repeats: int = 1) -> Tensor:
        """Makes sure that the store has a picture's latent, and returns it.

        What `encode` raises is passed on, and nothing is added.
        """
        found = self.store.kept(key, lambda: {"latent": encode()})["latent"]
        self.keys += [key] * repeats
        return found

    def __getitem__(self, index):
        found = self.store.get(self.keys[index])
        if found is None:
            raise NoSpace(
                f"The features of picture {index + 1} are gone from {self.store.folder}. Start again."
            )
        return found["latent"]

    def __len__(self) -> int:
        return len(self.keys)


def packed(text: EncodedText) -> dict[str, Tensor]:
    rows = text.llm.rows
    return {
        "clip": text.clip,
        "llm": text.llm.states,
        "positions": rows.positions,
        "row_of": rows.row_of.clone(),  # without padding it is `positions`, and a file refuses shared memory
        "real": torch.tensor(rows.real),
        "pairs": torch.tensor(list(json.dumps(text.pairs).encode()), dtype=torch.uint8),
        **({} if text.pooled is None else {"pooled": text.pooled}),
    }


def unpacked(tensors: Mapping[str, Tensor]) -> EncodedText:
    rows = Rows(int(tensors["real"]), tensors["positions"], tensors["row_of"])
    pairs = json.loads(bytes(tensors["pairs"].tolist()))
    return EncodedText(
        tensors["clip"],
        Features(tensors["llm"], rows),
        pairs=tuple((tuple(attribute), tuple(entity)) for attribute, entity in pairs),
        pooled=tensors.get("pooled"),
    )
