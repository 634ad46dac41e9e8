"""LlamaIndex's class for servers with OpenAI's API."""

from __future__ import annotations

from typing import Any

from client_checks import BEST, MESSAGES, QUESTION, URL, chat, check, direct, same
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike


def main() -> None:
    def model(chats: bool = True, **more: Any) -> Any:
        arguments = {"seed": 5, **more}
        where = {"api_base": f"{URL}/v1", "api_key": "none", "model": "tiny", "max_tokens": 12, "temperature": 0.7}
        return OpenAILike(**where, is_chat_model=chats, additional_kwargs=arguments, max_retries=0)

    turns, expected = [ChatMessage(role="user", content=QUESTION)], chat(temperature=0.7)
    with check("chat"):
        same(model().chat(turns).message.content, expected)
    with check("stream"):
        same("".join(str(chunk.delta) for chunk in model().stream_chat(turns)), expected)
    with check("completion"):
        reply = direct("/v1/completions", {"prompt": "The film", "temperature": 0.7})
        same(model(chats=False).complete("The film").text, reply["choices"][0]["text"])
    with check("fields of CARDS"):
        found = model(extra_body={"cards": BEST}).chat(turns)
        same(found.message.content, chat(cards=BEST, temperature=0.7))
        same(len(MESSAGES), 1)


if __name__ == "__main__":
    main()
