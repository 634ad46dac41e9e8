"""Instructor, which turns responses into objects by JSON schemas."""

from __future__ import annotations

from typing import Any, Literal

import instructor
import openai
from client_checks import FIXED, MESSAGES, URL, check, same
from pydantic import BaseModel, ConfigDict


class Mood(BaseModel):
    model_config = ConfigDict(extra="forbid")  # otherwise the schema allows further fields, up to the token limit

    mood: Literal["good", "bad"]


def main() -> None:
    with check("structured output"):
        server = openai.OpenAI(base_url=f"{URL}/v1", api_key="none")
        client: Any = instructor.from_openai(server, mode=instructor.Mode.JSON_SCHEMA)
        found = client.create(response_model=Mood, messages=MESSAGES, max_retries=1, **FIXED | {"max_tokens": 60})
        same(found.mood in ("good", "bad"), True)


if __name__ == "__main__":
    main()
