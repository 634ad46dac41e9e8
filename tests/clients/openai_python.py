"""OpenAI's client for Python."""

from __future__ import annotations

import json
from typing import Any

import openai
from client_checks import BEST, FIXED, MESSAGES, MOOD, QUESTION, URL, chat, check, direct, same


def main() -> None:
    client: Any = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
    create = client.chat.completions.create
    with check("chat"):
        same(create(messages=MESSAGES, **FIXED).choices[0].message.content, chat())
    with check("stream"):
        chunks = list(create(messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **FIXED))
        same("".join(choice.delta.content for chunk in chunks for choice in chunk.choices), chat())
        same(chunks[-1].usage.completion_tokens > 0, True)
    with check("completion"):
        expected = direct("/v1/completions", {"prompt": "The film"})["choices"][0]["text"]
        same(client.completions.create(prompt="The film", **FIXED).choices[0].text, expected)
    with check("responses"):
        given = {"model": "tiny", "input": QUESTION, "max_output_tokens": 12, "extra_body": {"seed": 5}}
        same(client.responses.create(**given).output_text, chat())
        with client.responses.stream(**given) as stream:
            same(stream.get_final_response().output_text, chat())
    with check("log-probabilities"):
        found = create(messages=MESSAGES, logprobs=True, top_logprobs=2, **FIXED).choices[0]
        same("".join(token.token for token in found.logprobs.content), found.message.content)
        same({len(token.top_logprobs) for token in found.logprobs.content}, {2})
    with check("fields of CARDS"):
        found = create(messages=MESSAGES, extra_body={"cards": BEST}, **FIXED)
        same((found.choices[0].message.content, found.cards["method"]), (chat(cards=BEST), "best-of-n"))
    with check("structured output"):
        form = {"type": "json_schema", "json_schema": {"name": "mood", "schema": MOOD, "strict": True}}
        found = create(messages=MESSAGES, response_format=form, **FIXED | {"max_tokens": 60})
        same(json.loads(found.choices[0].message.content)["mood"] in ("good", "bad"), True)
    with check("errors"):
        try:
            create(messages=MESSAGES, **FIXED | {"max_tokens": 10**6})
        except openai.BadRequestError as error:
            same(error.param, "max_tokens")
        else:
            raise AssertionError("an invalid request was accepted")


if __name__ == "__main__":
    main()
