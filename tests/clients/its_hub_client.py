"""its_hub, whose algorithms draw several responses. It sends fields that the server has to ignore."""

from __future__ import annotations

import asyncio
from typing import Any

import its_hub
from client_checks import MESSAGES, QUESTION, URL, chat, check, direct, same
from its_hub.api import ChatMessage


def main() -> None:
    hub: Any = its_hub

    def model(**more: Any) -> Any:
        where = {"endpoint": f"{URL}/v1", "api_key": "none", "model_name": "tiny"}
        return hub.OpenAICompatibleLanguageModel(**where, max_completion_tokens=12, max_tries=1, **more)

    with check("chat"):
        turns = [ChatMessage(role="user", content=QUESTION)]
        reply = asyncio.run(model(temperature=0.0).agenerate_single(turns))
        same(reply["content"], chat(temperature=0.0))
    with check("continued message"):
        begun = {"role": "assistant", "content": "It was"}
        turns = [ChatMessage(role="user", content=QUESTION), ChatMessage(**begun)]
        reply = asyncio.run(model(temperature=0.0).agenerate_single(turns))
        body = {"messages": [*MESSAGES, begun], "continue_final_message": True, "temperature": 0.0}
        same(reply["content"], direct("/v1/chat/completions", body)["choices"][0]["message"]["content"])
    with check("several responses"):
        reply = hub.SelfConsistency().infer(model(temperature=1.0), QUESTION, budget=3)
        same(isinstance(reply["content"], str), True)


if __name__ == "__main__":
    main()
