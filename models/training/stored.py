"""Features of a data set on disk: computed once, as far as there is room, and mapped when a step needs them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

    limit:   bytes that the folder may hold.
    is_full: whether something did not fit, after which nothing more is written. A part of the features that does not
             depend on chance is then on the disk.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit, self.is_full = folder, limit, False
        self.sound: set[Path] = set()  # files whose tensors were found as they were written
        folder.mkdir(parents=True, exist_ok=True)
        self.size = sum(file.stat().st_size for file in folder.iterdir())

    def get(self, key: Sequence[str]) -> dict[str, Tensor] | None:
        """The tensors, mapped from their file. None if there is none, if it cannot be read, or if it is damaged."""
        found, total = self.unread(key)
        path = self.path(key)
        if found is not None and path not in self.sound:
            if total is not None and sum_of(found) != total:
                return None
            self.sound.add(path)
        return found

    def unread(self, key: Sequence[str]) -> tuple[dict[str, Tensor] | None, int | None]:
        """The tensors as their file's header tells them, and the sum that was written with them, if one was.

        Their bytes are not read. A start that compared the sums of all features would read the whole store.
        """
        try:
            with safe_open(self.path(key), framework="pt") as file:
                entry = json.loads((file.metadata() or {}).get(KEY, "null"))
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (OSError, SafetensorError, ValueError, RecursionError):
            return None, None
        if entry == list(key):  # as before there were sums
            return found, None
        if isinstance(entry, dict) and entry.keys() == {"key", "sum"} and entry["key"] == list(key):
            return found, entry["sum"]
        return None, None

    def put(self, key: Sequence[str], tensors: dict[str, Tensor]) -> bool:
        """Keeps the tensors, if they fit into the limit and on the disk. Returns whether they do."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        fits = self.size + size <= self.limit and shutil.disk_usage(self.folder).free >= size + SPARE
        if self.is_full or not fits:
            self.is_full = True
            return False
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        try:
            with written_whole(self.path(key)) as unfinished:
                entry = json.dumps({"key": list(key), "sum": sum_of(contiguous)})
                save_file(contiguous, unfinished, {KEY: entry})
        except (OSError, SafetensorError) as error:
            raise NoSpace(
                f"Features cannot be written to {self.folder} ({words_of(error)}). Free some of that disk, or name "
                "another folder."
            ) from error
        self.size += size
        return True

    def path(self, key: Sequence[str]) -> Path:
        return self.folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.safetensors"


class StoredTexts(Mapping[str, EncodedText]):
    """Text → its states: from the store, or read anew where they do not fit into it.

    key:     everything that decides on them: the LLM, the recipe, CLIP, the text itself.
    read:    gives each of several texts with its states, in any order.
    lacking: the texts that are not in the store.
    """

    def __init__(
        self,
        store: Store,
        key: Callable[[str], Sequence[str]],
        read: Callable[[Sequence[str]], Iterable[tuple[str, EncodedText]]],
    ):
        self.store, self.key, self.read = store, key, read
        self.texts: dict[str, None] = {}
        self.lacking: set[str] = set()
        self.held: dict[str, EncodedText] = {}

    def add_all(self, texts: Iterable[str], on_text: Callable[[], None] = lambda: None) -> None:
        """Adds texts, and makes sure that the store has their states as far as it has room.

        on_text: is called after each.
        """
        texts = dict.fromkeys(texts)
        missing = {text for text in texts if self.store.unread(self.key(text))[0] is None}
        for _ in range(len(texts) - len(missing)):
            on_text()
        self.texts |= texts
        self.lacking |= missing
        if missing and not self.store.is_full:
            for text, states in self.read([text for text in texts if text in missing]):
                if not self.store.put(self.key(text), packed(states)):
                    return
                self.lacking.discard(text)
                on_text()

    def fetch(self, texts: Iterable[str]) -> None:
        """Reads together those texts that the store lacks, and holds their states until the next call.

        What is read together depends on the texts of this call alone, so that a run that goes on reads the same to the
        bit as one that was never stopped.
        """
        wanted = [text for text in dict.fromkeys(texts) if text in self.lacking]
        if wanted != list(self.held):
            self.held = {}
            found = dict(self.read(wanted)) if wanted else {}
            self.held = {text: found[text] for text in wanted}

    def __getitem__(self, text: str) -> EncodedText:
        if text in self.held:
            return self.held[text]
        found = None if text in self.lacking else self.store.get(self.key(text))
        if found is not None:
            return unpacked(found)
        ((_, states),) = self.read([text])
        if text not in self.lacking:  # somebody deleted or damaged its file
            self.store.put(self.key(text), packed(states))
        return states

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    def __len__(self) -> int:
        return len(self.texts)


class StoredLatents(Sequence[Tensor]):
    """Latents by the keys of their pictures: from the store, or encoded anew where they do not fit into it.

    lacking: the keys that are not in the store.
    """

    def __init__(self, store: Store):
        self.store = store
        self.keys: list[Sequence[str]] = []
        self.encoders: list[Callable[[], Tensor]] = []
        self.lacking: set[tuple[str, ...]] = set()

    def add(
        self,
        key: Sequence[str],
        encode: Callable[[], Tensor],
        shape: Callable[[], tuple[int, ...]],
        repeats: int = 1,
    ) -> tuple[int, ...]:
        """Adds a picture, and makes sure that the store has its latent if it has room. Returns the latent's shape.

        shape: gives it without encoding. What `encode` and `shape` raise is passed on, and nothing is added.
        """
        found, _ = self.store.unread(key)
        latent = None if found is None else found["latent"]
        if latent is None and not self.store.is_full:
            latent = encode()
            is_kept = self.store.put(key, {"latent": latent})
        else:
            is_kept = latent is not None
        size = shape() if latent is None else tuple(latent.shape)
        if not is_kept:
            self.lacking.add(tuple(key))
        self.keys += [key] * repeats
        self.encoders += [encode] * repeats
        return size

    def __getitem__(self, index):
        key = self.keys[index]
        is_kept = tuple(key) not in self.lacking
        found = self.store.get(key) if is_kept else None
        if found is not None:
            return found["latent"]
        latent = self.encoders[index]()
        if is_kept:  # somebody deleted or damaged its file
            self.store.put(key, {"latent": latent})
        return latent

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
