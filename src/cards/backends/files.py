"""The location of a model's files: embedded in this package, in a folder, or on Hugging Face."""

from __future__ import annotations

import hashlib
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cards.errors import UnknownNameError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TINY = Path(__file__).parents[1] / "tiny"
EMBEDDED = {"tiny-draft": "draft", "tiny-aligned": "aligned", "tiny-gold": "gold"}


def locate(name: str, embedded: str) -> str:
    """Return the folder of an embedded model (`tiny` is in folder `embedded`), or any other name unchanged.

    Raises UnknownNameError for a likely typing error, without network access.
    """
    folders = EMBEDDED | {"tiny": embedded}
    source = str(TINY / folders[name]) if name in folders else name
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
