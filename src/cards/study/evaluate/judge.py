"""LLM judges: any OpenAI-compatible server that has a chat model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cards.errors import UnavailableError, check

if TYPE_CHECKING:
    from cards.backends.http.client import Client

LONGEST_REPLY = 1024  # tokens


@dataclass(frozen=True, slots=True)
class Judge:
    """A chat model on a server. `name` is what judgements are known by."""

    name: str
    client: Client

    async def reply(self, text: str) -> str:
        """To one message, at temperature 0. Raises UnavailableError or SettingError."""
        body = {
            "model": self.name,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "seed": 0,
            "max_tokens": LONGEST_REPLY,
        }
        answered = await self.client.post("/chat/completions", body)
        try:
            said = answered["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            said = None
        if not isinstance(said, str):
            raise UnavailableError(f"The judge at {self.client.address} answered without a message.")
        return said


def connect(specs: Sequence[str], timeout: float = 120.0, retries: int = 4, backoff: float = 0.5) -> list[Judge]:
    """Judges at `http://host/v1`, a server's only model, or at `http://host/v1#MODEL`, about which no server is asked.

    Raises SettingError or UnavailableError.
    """
    from cards.backends.http.client import Client  # with httpx, which takes a while
    from cards.backends.http.served import model_card

    judges: list[Judge] = []
    key = os.environ.get("CARDS_API_KEY") or os.environ.get("OPENAI_API_KEY")
    for spec in specs:
        check(spec.startswith(("http://", "https://")), f"A judge is http://host/v1 or http://host/v1#MODEL, not {spec!r}.")
        address, _, name = spec.partition("#")
        client = Client(address, api_key=key, timeout=timeout, retries=retries, backoff=backoff)
        name = name or client.run(model_card(client, "/models", ""))["id"]
        check(name not in [judge.name for judge in judges], f"Two judges have the model {name!r}: judgements go by the model.")
        judges.append(Judge(name, client))
    return judges
