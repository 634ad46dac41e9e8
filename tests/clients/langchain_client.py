"""LangChain's classes for OpenAI's API."""

from __future__ import annotations

from typing import Any

from client_checks import BEST, FIXED, MOOD, QUESTION, URL, chat, check, direct, same
from langchain_openai import ChatOpenAI, OpenAI


def main() -> None:
    where: dict[str, Any] = {"base_url": f"{URL}/v1", "api_key": "none", "max_retries": 0}
    model: Any = ChatOpenAI(**where, **FIXED)
    with check("chat"):
        reply = model.invoke(QUESTION)
        same(reply.content, chat())
        same(reply.usage_metadata["output_tokens"] > 0, True)
        same([one.content for one in model.batch([QUESTION, QUESTION])], [chat()] * 2)
    with check("stream"):
        same("".join(chunk.content for chunk in model.stream(QUESTION)), chat())
    with check("completion"):
        expected = direct("/v1/completions", {"prompt": "The film", "temperature": 0.7})["choices"][0]["text"]
        same(OpenAI(**where, **FIXED, temperature=0.7).invoke("The film"), expected)
    with check("responses"):
        by_responses: Any = ChatOpenAI(**where, model="tiny", max_tokens=12, use_responses_api=True, extra_body={"seed": 5})
        same(by_responses.invoke(QUESTION).text, chat())
    with check("log-probabilities"):
        reply = model.bind(logprobs=True, top_logprobs=2).invoke(QUESTION)
        tokens = reply.response_metadata["logprobs"]["content"]
        same("".join(token["token"] for token in tokens), reply.content)
    with check("fields of CARDS"):
        same(ChatOpenAI(**where, **FIXED, extra_body={"cards": BEST}).invoke(QUESTION).content, chat(cards=BEST))
    with check("structured output"):
        longer: Any = ChatOpenAI(**where, **FIXED | {"max_tokens": 60})
        found = longer.with_structured_output({"title": "mood", **MOOD}, method="json_schema").invoke(QUESTION)
        same(found["mood"] in ("good", "bad"), True)


if __name__ == "__main__":
    main()
