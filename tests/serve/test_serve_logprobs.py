"""Log-probabilities of prompts and responses, and their alternatives, are those of the engine."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from helpers.running_server import CHAT, Running
from scipy.special import log_softmax

from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.events import Prompt, Response
from cards.serve import logprobs

pytestmark = pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
Pair = tuple[TransformersEngine, ClassifierReward]
PROMPT = "The movie was"
PLAIN = {"cards": {"method": "vanilla"}}


def complete(running: Running, **more: Any) -> Any:
    body = {"prompt": PROMPT, "max_tokens": 6, "seed": 3, **PLAIN, **more}
    answer = running.post(json=body).json()
    return answer["choices"][0] if len(answer.get("choices", ())) == 1 else answer


def table(engine: TransformersEngine, ids: tuple[int, ...]) -> Any:
    """Log-probabilities after each of these tokens, [tokens, vocabulary]."""
    return log_softmax(asyncio.run(engine.logits(Prompt("", ids), Response(), len(ids))).astype(np.float64), -1)


@pytest.mark.parametrize("most", [logprobs.MAX_LOGITS, 3 * 4096, 1])
def test_an_echo_has_the_log_probabilities_of_every_token(
    tiny: Running, embedded: Pair, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """`most`: they are read in parts of any size, with parts that begin in the prompt and end in the response."""
    monkeypatch.setattr(logprobs, "MAX_LOGITS", most)
    engine, choice = embedded[0], complete(tiny, echo=True, logprobs=3)
    assert choice["text"] == PROMPT + complete(tiny)["text"]
    found = choice["logprobs"]
    ids = engine.encode(PROMPT).token_ids + engine.tokenize(complete(tiny)["text"])
    assert "".join(found["tokens"]) == choice["text"]
    assert all(choice["text"][at:].startswith(token) for at, token in zip(found["text_offset"], found["tokens"], strict=True))
    rows = table(engine, ids[:-1])
    assert (found["token_logprobs"][0], found["top_logprobs"][0]) == (None, None)
    assert found["token_logprobs"][1:] == pytest.approx(
        [row[token] for row, token in zip(rows, ids[1:], strict=True)], abs=1e-4
    )
    for row, token, top in zip(rows, ids[1:], found["top_logprobs"][1:], strict=True):
        names = {engine.tokenizer.decode([int(other)]): row[other] for other in np.argsort(-row)[:3]}
        assert top == pytest.approx(names | {engine.tokenizer.decode([token]): row[token]}, abs=1e-4)


def test_a_prompt_alone_is_scored_without_decoding(tiny: Running, embedded: Pair) -> None:
    engine = embedded[0]
    ids = list(engine.encode(PROMPT).token_ids)
    answer = tiny.post(json={"prompt": [ids, ids[:2]], "max_tokens": 0, "echo": True, "logprobs": 1}).json()
    first, second = answer["choices"]
    assert (first["text"], first["finish_reason"], first["cards"]["segments"]) == (PROMPT, "length", [])
    assert answer["usage"]["lm_decoded_tokens"] == answer["usage"]["completion_tokens"] == answer["usage"]["rm_calls"] == 0
    expected = asyncio.run(engine.logprobs(Prompt("", tuple(ids[:1])), Response(token_ids=tuple(ids[1:]))))
    assert first["logprobs"]["token_logprobs"][1:] == pytest.approx(list(expected), abs=1e-4)
    assert second["logprobs"]["token_logprobs"][1:] == pytest.approx(list(expected[:1]), abs=1e-4)
    streamed = tiny.post(json={"prompt": ids, "max_tokens": 0, "echo": True, "stream": True}).text
    assert f'"text": "{PROMPT}"' in streamed


def test_the_greedy_token_has_the_highest_log_probability_exactly(tiny: Running) -> None:
    """lm-evaluation-harness compares the two numbers."""
    found = complete(tiny, top_k=1, echo=True, logprobs=1)["logprobs"]
    drawn = list(zip(found["token_logprobs"], found["top_logprobs"], strict=True))[-6:]
    assert all(logprob == max(top.values()) and len(top) == 1 for logprob, top in drawn)


def test_tokens_are_a_prompt_like_their_text(tiny: Running, embedded: Pair) -> None:
    engine = embedded[0]
    for text in (PROMPT, " two  spaces\n", "\N{PARTY POPPER} caf\N{LATIN SMALL LETTER E WITH ACUTE}"):
        prompt = engine.encode(text)
        assert engine.prompt_of(prompt.token_ids).text == prompt.text
        assert complete(tiny, prompt=list(prompt.token_ids))["text"] == complete(tiny, prompt=text)["text"]


def test_parts_of_characters_have_bytes(tiny: Running, embedded: Pair) -> None:
    text = "\N{PARTY POPPER}"
    choice = complete(tiny, prompt=text, max_tokens=0, echo=True, logprobs=20)
    assert choice["text"] == "".join(choice["logprobs"]["tokens"]) == text
    keys = [key for top in choice["logprobs"]["top_logprobs"][1:] for key in top]
    assert any(key.startswith("bytes:\\x") for key in keys)
    assert all(len(top) >= 20 for top in choice["logprobs"]["top_logprobs"][1:])
    chat = {"messages": [{"role": "user", "content": text}], "max_tokens": 2, "logprobs": True, "top_logprobs": 20, **PLAIN}
    for token in tiny.post("/v1/chat/completions", json=chat).json()["choices"][0]["logprobs"]["content"]:
        values = [one["logprob"] for one in token["top_logprobs"]]
        assert values == sorted(values, reverse=True)
        assert [bytes(one["bytes"]).decode(errors="replace") for one in token["top_logprobs"]] == [
            one["token"] for one in token["top_logprobs"]
        ]


def test_alternatives_need_log_probabilities(tiny: Running) -> None:
    answer = tiny.post("/v1/chat/completions", json={"messages": CHAT, "top_logprobs": 2})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "top_logprobs")
    plain = tiny.post("/v1/chat/completions", json={"messages": CHAT, "max_tokens": 2, "logprobs": True, **PLAIN}).json()
    assert [token["top_logprobs"] for token in plain["choices"][0]["logprobs"]["content"]] == [[], []]
    assert complete(tiny, logprobs=0)["logprobs"]["top_logprobs"] is None
