"""The files of a model: embedded in this package, in a folder, or on the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from cards.backends.hub import Repository
from cards.backends.quiet import quiet
from cards.errors import ModelError, SettingError, UnknownNameError, require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["lm", "rm"]  # an LM or a reward model; also the folder of the embedded model `tiny`
TINY = Path(__file__).parents[1] / "tiny"
EMBEDDED = {"tiny-draft": "draft", "tiny-aligned": "aligned", "tiny-gold": "gold"}
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
LFS = b"version https://git-lfs"
PICKLE = b"\x80\x02"  # the beginning of weights saved by PyTorch before version 1.6


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """The folder of a model and the names of its files. Weights of a repository may not be in the folder yet."""

    name: str
    folder: Path
    files: frozenset[str]
    repository: Repository | None = None

    def json(self, file: str) -> dict[str, Any]:
        """Return the content of a JSON file, or an empty dictionary if there is no such file. Raises ModelError."""
        path = self.folder / file
        try:
            return dict(json.loads(path.read_bytes())) if path.exists() else {}
        except ValueError as error:
            raise ModelError(f"{path} is no valid JSON file: {error}.") from error

    def check_weights(self, names: tuple[str, ...] = WEIGHTS) -> list[str]:
        """Return the names of the weight files, the first of `names` that exist. Weights are not read.

        Raises ModelError if files are missing, truncated, or pointers of Git LFS.
        """
        found = next((name for name in names if name in self.files), None)
        if found is None:
            raise ModelError(f"Model {self.name!r} has no weights: it has none of the files {', '.join(names)}.")
        shards = sorted(set(self.json(found)["weight_map"].values())) if found.endswith(".index.json") else [found]
        if missing := [shard for shard in shards if shard not in self.files]:
            raise ModelError(
                f"Model {self.name!r} lacks {len(missing)} of {len(shards)} weight files: {', '.join(missing[:3])}."
            )
        for shard in shards:
            if (self.folder / shard).exists():  # the others are downloaded later
                check_file(self.folder / shard)
        return shards

    def fetch_weights(self, shards: list[str]) -> None:
        """Download those of the weight files that are not in the folder. Raises ModelError."""
        if self.repository is not None and (missing := [shard for shard in shards if not (self.folder / shard).exists()]):
            self.repository.fetch(missing)
            for shard in missing:
                check_file(self.folder / shard)

    def check_tokenizer(self) -> bool:
        """Return whether there is a tokenizer. Raises ModelError if its files are truncated or pointers of Git LFS."""
        found = [name for name in TOKENIZERS if name in self.files]
        for path in (self.folder / name for name in found):
            if path.exists():
                start, end = _ends(path)
                refuse_pointer(path, start)
                if path.suffix == ".json" and not end.rstrip().endswith(b"}"):
                    raise ModelError(f"{path} is damaged or incomplete: copy or download it again.")
        return bool(found)

    @property
    def tokenizer_hash(self) -> str | None:
        """The hash of tokenizer.json, if there is one."""
        file = self.folder / "tokenizer.json"
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None


def locate(name: str, kind: Kind, token: str | None = None) -> ModelFolder:
    """Return the files of an embedded model, of a folder, or of a repository on the Hub (`NAME` or `NAME@REVISION`).

    Raises UnknownNameError for a likely typing error, without network access, and ModelError if there is no such model.
    """
    folders = EMBEDDED | {"tiny": kind}
    folder = TINY / folders[name] if name in folders else Path(name)
    if name in folders and not folder.is_dir():
        raise SettingError("The embedded models are not installed: pip install ./packages/tiny, in a clone of CARDS.")
    if folder.is_dir():
        return ModelFolder(name, folder, frozenset(str(path.relative_to(folder)) for path in folder.rglob("*")))
    if folder.exists():
        raise ModelError(f"Model {name!r} is a file. Give the folder of a model for transformers, with config.json.")
    repository, _, revision = name.partition("@")
    if get_close_matches(name, _known(kind), cutoff=0.7):
        raise unknown_model(name, kind)
    require(f"The Hugging Face name {name!r}", "http", "huggingface_hub")
    if not _is_repository(repository):
        raise unknown_model(name, kind)
    try:
        found = Repository(repository, revision or None, token)
        return ModelFolder(name, *found.find(), found)
    except ModelError as error:
        if "/" in repository:
            raise
        raise unknown_model(name, kind) from error


def _is_repository(name: str) -> bool:
    require("The tokenizer of a Hugging Face name", "http", "huggingface_hub")
    from huggingface_hub import utils
    from huggingface_hub.errors import HFValidationError

    try:
        utils.validate_repo_id(name)  # type: ignore[attr-defined]
    except HFValidationError:
        return False
    return True


def _known(kind: Kind) -> list[str]:
    embedded = ["tiny", "tiny-gold"] if kind == "rm" else ["tiny", "tiny-draft", "tiny-aligned"]
    return [*embedded, *(p.name for p in Path().iterdir() if (p / "config.json").exists())]


def unknown_model(name: str, kind: Kind) -> UnknownNameError:
    """Return the error for a model that was not found."""
    other = ", another kind of reward (docs/rewards.md)" if kind == "rm" else ""
    return UnknownNameError(
        "reward model" if kind == "rm" else "model",
        name,
        _known(kind),
        f"Give 'tiny', a folder with config.json, a Hugging Face name that is cached or can be downloaded{other}.",
    )


def check_file(file: Path) -> None:
    """Check a weight file without reading the weights. Raises ModelError if it is truncated or a pointer of Git LFS."""
    from safetensors import SafetensorError, safe_open

    start, _ = _ends(file)
    refuse_pointer(file, start)
    damage: object = None
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "np"):
                pass
        except SafetensorError as error:
            damage = error
    elif not (zipfile.is_zipfile(file) or start.startswith(PICKLE)):
        damage = "it does not end as PyTorch files do"
    if damage is not None:
        raise ModelError(f"{file} is damaged or incomplete ({damage}): copy or download it again.")


def _ends(file: Path) -> tuple[bytes, bytes]:
    """Return the first and the last bytes of a file."""
    with file.open("rb") as content:
        start = content.read(len(LFS))
        content.seek(max(0, file.stat().st_size - len(LFS)))
        return start, content.read()


def refuse_pointer(file: Path, start: bytes) -> None:
    if start == LFS:
        raise ModelError(f"{file} is a pointer of Git LFS instead of its content: run 'git lfs pull' in its repository.")


def tensor_names(files: Iterable[Path]) -> set[str] | None:
    """Return the names of the tensors in safetensors files, or None if a file is missing or has another format."""
    from safetensors import safe_open

    names: set[str] = set()
    for file in files:
        if file.suffix != ".safetensors" or not file.exists():
            return None
        with safe_open(file, "np") as content:
            names.update(content.keys())
    return names


def load_tokenizer(folder: ModelFolder, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder, and attach the hash of its file. Raises OSError or ValueError."""
    from transformers import AutoTokenizer

    with quiet():
        loaded = AutoTokenizer.from_pretrained(folder.folder, trust_remote_code=trust_remote_code)
    tokenizer = cast("PreTrainedTokenizerBase", loaded)
    tokenizer._cards_file = folder.tokenizer_hash
    return tokenizer
