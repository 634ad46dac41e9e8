"""LiteLLM, with its providers for OpenAI's API and for vLLM."""

from __future__ import annotations

import json
from typing import Any

import litellm
from client_checks import BEST, FIXED, MESSAGES, MOOD, URL, chat, check, direct, same


def main() -> None:
    calls: Any = litellm
    where: dict[str, Any] = {**FIXED, "api_base": f"{URL}/v1", "api_key": "none"}
    with check("chat"):
        for provider in ("openai", "hosted_vllm"):
            reply = calls.completion(messages=MESSAGES, **where | {"model": f"{provider}/tiny"})
            same(reply.choices[0].message.content, chat())
    where["model"] = "hosted_vllm/tiny"
    with check("stream"):
        chunks = list(calls.completion(messages=MESSAGES, stream=True, **where))
        same("".join(chunk.choices[0].delta.content or "" for chunk in chunks), chat())
    with check("completion"):
        expected = direct("/v1/completions", {"prompt": "The film"})["choices"][0]["text"]
        found = calls.text_completion(prompt="The film", **where | {"model": "text-completion-openai/tiny"})
        same(found.choices[0].text, expected)
    with check("log-probabilities"):
        reply = calls.completion(messages=MESSAGES, logprobs=True, top_logprobs=2, **where)
        same("".join(token.token for token in reply.choices[0].logprobs.content), chat())
    with check("fields of CARDS"):
        reply = calls.completion(messages=MESSAGES, extra_body={"cards": BEST}, **where)
        same(reply.choices[0].message.content, chat(cards=BEST))
    with check("structured output"):
        form = {"type": "json_schema", "json_schema": {"name": "mood", "schema": MOOD, "strict": True}}
        reply = calls.completion(messages=MESSAGES, response_format=form, **where | {"max_tokens": 60})
        same(json.loads(reply.choices[0].message.content)["mood"] in ("good", "bad"), True)
    with check("errors"):
        try:
            calls.completion(messages=MESSAGES, **where | {"max_tokens": 10**6})
        except litellm.BadRequestError as error:
            same("max_tokens" in str(error), True)
        else:
            raise AssertionError("an invalid request was accepted")


if __name__ == "__main__":
    main()
