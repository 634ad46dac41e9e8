"""Models on the Hugging Face Hub: found with one request, then downloaded to the cache, the weights last."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cards.backends.quiet import quiet
from cards.errors import ModelError

TIMEOUT: Any = (2.0, 10.0, 10.0, 10.0)  # seconds to connect, read, write, and wait for a connection
SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.py", "*.tiktoken"]


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository on the Hub, at a revision (None: the default branch). `token` is never shown."""

    name: str
    revision: str | None
    token: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name

    def find(self) -> tuple[Path, frozenset[str]]:
        """Return the folder of the snapshot in the cache, with all files except weights, and the names of all files.

        Without a connection the cache is used. Raises ModelError if the repository does not exist or cannot be reached.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            with quiet():
                info = HfApi().model_info(self.name, revision=self.revision, timeout=TIMEOUT, token=self.token)
                folder = self.download(SMALL_FILES)
        except RevisionNotFoundError as error:
            raise ModelError(f"{self.name!r} has no revision {self.revision!r} on the Hugging Face Hub.") from error
        except RepositoryNotFoundError as error:  # also for private and gated models
            raise ModelError(
                f"The Hugging Face Hub has no model {self.name!r} that you can read. If it is private or gated, ask for access "
                "on its page and set HF_TOKEN, or run 'hf auth login'."
            ) from error
        except Exception as error:  # of the HTTP client, whose package depends on the version of huggingface_hub
            return self._cached(error)
        return folder, frozenset(file.rfilename for file in info.siblings or ())

    def _cached(self, error: Exception) -> tuple[Path, frozenset[str]]:
        from huggingface_hub import try_to_load_from_cache

        for file in ("config.json", "adapter_config.json"):
            if isinstance(found := try_to_load_from_cache(self.name, file, revision=self.revision), str):
                folder = Path(found).parent
                return folder, frozenset(str(path.relative_to(folder)) for path in folder.rglob("*"))
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
        raise ModelError(
            f"{str(self)!r} is neither a folder nor in the cache, and the Hugging Face Hub cannot be reached: {reason}. "
            "Download it on a machine with network access and give its folder."
        ) from error

    def download(self, patterns: list[str]) -> Path:
        """Download the files that match the patterns, unless they are in the cache, and return the folder."""
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(self.name, revision=self.revision, token=self.token, allow_patterns=patterns))

    def fetch(self, files: list[str]) -> None:
        """Download weights, with progress bars on terminals. Raises ModelError."""
        try:
            with quiet(bars=sys.stderr.isatty()):
                self.download(files)
        except OSError as error:
            raise ModelError(f"The weights of {str(self)!r} cannot be downloaded: {str(error).splitlines()[0]}") from error
