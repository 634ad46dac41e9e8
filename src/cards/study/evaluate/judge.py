"""LLM judges: chat models on OpenAI-compatible servers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cards.errors import UnavailableError, check

if TYPE_CHECKING:
    from cards.backends.http.client import Client

MAX_REPLY_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Judge:
    """A chat model on a server. `name` identifies its judgements in the journal."""

    name: str
    client: Client

    async def reply(self, text: str) -> str:
        """Return the reply to one message, at temperature 0. Raises UnavailableError or SettingError."""
        body = {
            "model": self.name,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "seed": 0,
            "max_tokens": MAX_REPLY_TOKENS,
        }
        completion = await self.client.post("/chat/completions", body)
        try:
            content = completion["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            content = None
        if not isinstance(content, str):
            raise UnavailableError(f"The reply of the judge at {self.client.address} has no message text.")
        return content


def connect(specs: Sequence[str], timeout: float = 120.0, retries: int = 4, backoff: float = 0.5) -> list[Judge]:
    """Return the judges at `http://host/v1` (a server with a single model) or `http://host/v1#MODEL`.

    Servers are contacted only if no model is given. Raises SettingError or UnavailableError.
    """
    from cards.backends.http.client import Client  # with httpx, which takes a while
    from cards.backends.http.served import model_card

    judges: list[Judge] = []
    key = os.environ.get("CARDS_API_KEY") or os.environ.get("OPENAI_API_KEY")
    for spec in specs:
        valid = spec.startswith(("http://", "https://"))
        check(valid, f"A judge must be http://host/v1 or http://host/v1#MODEL, got {spec!r}.")
        address, _, name = spec.partition("#")
        client = Client(address, api_key=key, timeout=timeout, retries=retries, backoff=backoff)
        name = name or client.run(model_card(client, "/models", ""))["id"]
        check(name not in [judge.name for judge in judges], f"Two judges have the model {name!r}: judgements go by the model.")
        judges.append(Judge(name, client))
    return judges
