"""The location of a model's files: embedded in this package, in a folder, or on Hugging Face."""

from __future__ import annotations

import hashlib
import json
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cards.errors import MissingExtraError, ModelError, UnknownNameError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TINY = Path(__file__).parents[1] / "tiny"
EMBEDDED = {"tiny-draft": "draft", "tiny-aligned": "aligned", "tiny-gold": "gold"}
WEIGHTS = ("*.safetensors", "*.bin")
LFS = b"version https://git-lfs"


def locate(name: str, embedded: str) -> str:
    """Return the folder of an embedded model (`tiny` is in folder `embedded`), or any other name unchanged.

    Raises UnknownNameError for a likely typing error, without network access.
    """
    folders = EMBEDDED | {"tiny": embedded}
    source = str(TINY / folders[name]) if name in folders else name
    if name in folders and not TINY.is_dir():
        raise MissingExtraError("The embedded models are not installed", "local")
    if not Path(source).exists() and get_close_matches(name, _known(), cutoff=0.7):
        raise unknown_model(name)
    return source


def _known() -> list[str]:
    return ["tiny", *EMBEDDED, *(p.name for p in Path().iterdir() if (p / "config.json").exists())]


def unknown_model(name: str) -> UnknownNameError:
    """Return the error for a model that was not found."""
    return UnknownNameError(
        "model",
        name,
        _known(),
        "Give 'tiny', a folder with config.json, or a Hugging Face name that is cached or can be downloaded.",
    )


def check_weights(source: str, name: str) -> None:
    """Check the weight files of a folder without reading the weights. Names of Hugging Face are not checked.

    Raises ModelError if files are missing, truncated, or pointers of Git LFS.
    """
    from safetensors import SafetensorError, safe_open

    folder = Path(source)
    for index in folder.glob("*.index.json"):
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if missing := [shard for shard in shards if not (folder / shard).exists()]:
            raise ModelError(f"Model {name!r} lacks {len(missing)} of {len(shards)} weight files: {', '.join(missing[:3])}.")
    for file in [path for ending in WEIGHTS for path in folder.glob(ending)]:
        with file.open("rb") as content:
            if content.read(len(LFS)) == LFS:
                raise ModelError(f"{file} is a pointer of Git LFS instead of weights: run 'git lfs pull' in its repository.")
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, "np"):
                    pass
            except SafetensorError as error:
                raise ModelError(f"{file} is damaged or incomplete ({error}): copy or download it again.") from error


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or a Hugging Face name, and attach the hash of its file. Raises OSError or ValueError."""
    from huggingface_hub import try_to_load_from_cache
    from transformers import AutoTokenizer

    tokenizer = cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(source))
    folder = Path(source)
    file = folder / "tokenizer.json" if folder.is_dir() else try_to_load_from_cache(source, "tokenizer.json")
    if isinstance(file, str | Path) and Path(file).exists():
        tokenizer._cards_file = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return tokenizer
