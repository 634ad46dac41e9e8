"""OpenAI's own clients get what the library gives."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import CHAT, Running, Switch, serving

from cards import CARDS, Decoder
from cards.backends.local.engine import TransformersEngine
from cards.backends.local.rewards import ClassifierReward
from cards.methods import Vanilla
from cards.sampling import seed_at

pytestmark = pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
PROMPT = "The movie was"
COUNTS = ("lm_decoded_tokens", "lm_wasted_tokens", "rm_calls", "candidates", "accepted", "rejected", "fallbacks")
Pair = tuple[TransformersEngine, ClassifierReward]


def ask(running: Running, **more: Any) -> Any:
    return running.client().completions.create(**{"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "seed": 3, **more})


def joined(stream: Any, index: int = 0) -> str:
    return "".join(choice.text for chunk in stream for choice in chunk.choices if choice.index == index)


def test_a_completion_is_what_the_decoder_says(tiny: Running, embedded: Pair) -> None:
    answer, result = ask(tiny), Decoder(*embedded, CARDS())(PROMPT, max_tokens=12, seed=3)
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason) == (result.text, result.finish_reason)
    assert choice.cards["reward"] == pytest.approx(result.reward, abs=1e-4)
    assert choice.cards["finish"] == result.finish_reason
    assert choice.cards["aligned"] is True
    assert [s["text"] for s in choice.cards["segments"]] == [s.text for s in result.segments]
    assert answer.cards == {"format": 1, "method": "cards", "reward": "tiny"}


def test_usage_is_the_decoders(tiny: Running, embedded: Pair) -> None:
    settings: dict[str, Any] = {"width": 1}  # the only thing that makes the books a function of the seed alone
    usage = ask(tiny, extra_body={"cards": {"settings": settings}}).usage
    result = Decoder(*embedded, CARDS(**settings))(PROMPT, max_tokens=12, seed=3)
    prompt = len(embedded[0].encode(PROMPT).token_ids)
    assert (usage.prompt_tokens, usage.completion_tokens) == (prompt, len(result.token_ids))
    assert usage.total_tokens == prompt + len(result.token_ids)
    own = result.usage.to_dict()
    assert {name: getattr(usage, name) for name in COUNTS} == {name: own[name] for name in COUNTS}


def test_a_chat_is_what_the_decoder_says(tiny: Running, embedded: Pair) -> None:
    answer = tiny.client().chat.completions.create(model="tiny", messages=CHAT, max_completion_tokens=10, seed=5)
    [choice] = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == Decoder(*embedded, CARDS())(CHAT, max_tokens=10, seed=5).text


def test_parts_of_text_and_developers_are_understood(tiny: Running) -> None:
    turns = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    same = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    create: Any = tiny.client().chat.completions.create
    one, other = (create(model="tiny", messages=m, max_tokens=6, seed=1).choices[0].message.content for m in (turns, same))
    assert one == other


def test_a_stream_tells_each_accepted_segment_and_adds_up_to_the_answer(tiny: Running) -> None:
    whole = ask(tiny)
    chunks = list(ask(tiny, stream=True, stream_options={"include_usage": True}))
    assert joined(chunks) == whole.choices[0].text
    told = [c.choices[0] for c in chunks if c.choices and "segment" in c.choices[0].cards]
    assert [c.text for c in told] == [s["text"] for s in whole.choices[0].cards["segments"]]
    assert len({c.id for c in chunks}) == 1
    end = chunks[-2]
    assert end.choices[0].finish_reason == whole.choices[0].finish_reason
    assert end.cards["usage"]["completion_tokens"] == whole.usage.completion_tokens
    assert chunks[-1].choices == []
    assert chunks[-1].usage.accepted == end.cards["usage"]["accepted"] == len(told) - whole.usage.fallbacks
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_of_a_chat_begins_with_the_role(tiny: Running) -> None:
    create: Any = tiny.client().chat.completions.create
    chunks = list(create(model="tiny", messages=CHAT, max_tokens=10, seed=5, stream=True))
    whole = create(model="tiny", messages=CHAT, max_tokens=10, seed=5)
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].cards["usage"]["prompt_tokens"] == whole.usage.prompt_tokens


def test_several_answers_have_seeds_of_their_own(tiny: Running) -> None:
    both = ask(tiny, n=2)
    seeds = [3, seed_at(3, 1)]
    singles = [ask(tiny, seed=seed).choices[0].text for seed in seeds]
    assert [choice.text for choice in both.choices] == singles
    assert [choice.cards["seed"] for choice in both.choices] == seeds
    chunks = list(ask(tiny, n=2, stream=True))
    assert [joined(chunks, index) for index in (0, 1)] == singles
    assert both.usage.prompt_tokens == ask(tiny).usage.prompt_tokens


def test_several_prompts_are_answered_in_order(tiny: Running) -> None:
    other = "I never"
    answer = ask(tiny, prompt=[PROMPT, other])
    singles = [ask(tiny), ask(tiny, prompt=other, seed=seed_at(3, 1))]
    assert [c.text for c in answer.choices] == [single.choices[0].text for single in singles]


def test_without_a_seed_a_fresh_one_is_told(tiny: Running) -> None:
    first, second = (ask(tiny, seed=None) for _ in range(2))
    seeds = [answer.choices[0].cards["seed"] for answer in (first, second)]
    assert seeds[0] != seeds[1]
    assert ask(tiny, seed=seeds[0]).choices[0].text == first.choices[0].text


def test_stop_strings_end_an_answer_and_are_not_part_of_it(tiny: Running) -> None:
    plain = {"extra_body": {"cards": {"method": "vanilla"}}}  # without a reward, which reads the text that is returned
    text = ask(tiny, **plain).choices[0].text
    stop = text[4:6]
    cut = text[: text.index(stop)]
    [choice] = ask(tiny, stop=[stop, "never there"], **plain).choices
    assert (choice.text, choice.finish_reason) == (cut, "stop")
    assert joined(ask(tiny, stop=stop, stream=True, **plain)) == cut


def test_method_settings_and_temperature_reach_the_method(tiny: Running, embedded: Pair) -> None:
    answer = ask(tiny, temperature=0.0, extra_body={"cards": {"method": "vanilla", "settings": {"chunk": 4}}})
    assert answer.choices[0].text == Decoder(embedded[0], None, Vanilla(temperature=0.0))(PROMPT, max_tokens=12).text
    assert [s["tokens"] for s in answer.choices[0].cards["segments"]] == [4, 4, 4]
    assert answer.cards["method"] == "vanilla"
    settings = {"boundary": "fixed:3", "target": 2, "top_p": 0.9, "width": 1}
    answer = ask(tiny, extra_body={"cards": {"settings": settings}})
    assert [s["tokens"] for s in answer.choices[0].cards["segments"]] == [3, 3, 3, 3]


def test_log_probabilities_are_the_engines(tiny: Running, embedded: Pair) -> None:
    found = ask(tiny, logprobs=0).choices[0].logprobs
    engine = embedded[0]
    result = Decoder(*embedded, CARDS())(PROMPT, max_tokens=12, seed=3)
    expected = asyncio.run(engine.logprobs(engine.encode(PROMPT), result))  # type: ignore[arg-type]
    assert found.token_logprobs == pytest.approx(list(expected), abs=1e-4)
    assert "".join(found.tokens) == result.text
    assert [result.text[at:].startswith(t) for at, t in zip(found.text_offset, found.tokens, strict=True)] == [True] * 12
    create: Any = tiny.client().chat.completions.create
    chunks = list(create(model="tiny", messages=CHAT, max_tokens=5, seed=5, stream=True, logprobs=True))
    content = chunks[-1].choices[0].logprobs.content
    text = "".join(chunk.choices[0].delta.content for chunk in chunks)
    assert b"".join(bytes(token.bytes) for token in content).decode() == text
    assert all(token.logprob < 0 for token in content)


def test_a_trace_tells_every_verdict(tiny: Running) -> None:
    cards = {"trace": True, "settings": {"width": 1}}
    answer = ask(tiny, extra_body={"cards": cards})
    trace = answer.choices[0].cards["trace"]
    counts = {kind: sum(event["event"] == kind for event in trace) for kind in ("proposed", "rejected", "accepted", "fallback")}
    usage = answer.usage
    assert list(counts.values()) == [usage.candidates, usage.rejected, usage.accepted, usage.fallbacks]
    assert "".join(e["text"] for e in trace if e["event"] in ("accepted", "fallback")) == answer.choices[0].text
    chunks = list(ask(tiny, stream=True, extra_body={"cards": cards}))
    told = [chunk.choices[0].cards["trace"] for chunk in chunks if "trace" in chunk.choices[0].cards]
    assert [(e["event"], e["text"]) for e in told] == [(e["event"], e["text"]) for e in trace]
    assert joined(chunks) == answer.choices[0].text


async def test_requests_join_and_leave_each_other(tiny: Running) -> None:
    async with tiny.asynchronous() as client:

        async def one(seed: int) -> str:
            stream = await client.completions.create(model="tiny", prompt=PROMPT, max_tokens=8, seed=seed, stream=True)
            return "".join([choice.text async for chunk in stream for choice in chunk.choices])

        texts = await asyncio.gather(*(one(seed) for seed in range(6)))
    assert texts == [ask(tiny, seed=seed, max_tokens=8).choices[0].text for seed in range(6)]


def test_what_is_served(tiny: Running) -> None:
    [model] = tiny.client().models.list()
    assert model.id == "tiny"
    ours = model.cards  # type: ignore[attr-defined]
    assert ours["method"] == "cards"
    assert ours["reward"] == "tiny"
    assert {"cards", "vanilla", "best-of-n"} <= set(ours["methods"])
    assert not {"rsd", "cascade", "genarm"} & set(ours["methods"])  # they need models that are not here
    assert tiny.client().models.retrieve("tiny") == model


def test_the_example_of_the_page_works(tiny: Running, capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[2] / "docs" / "serve.md"
    [code] = re.findall(r"^```py\n(.*?)^```$", page.read_text(), re.M | re.S)
    assert "http://127.0.0.1:8000/v1" in code
    exec(code.replace("http://127.0.0.1:8000", tiny.url), {})
    assert "'finish':" in capsys.readouterr().out


def test_the_playground_comes_after_the_api() -> None:
    with serving(mock(), Switch(), CARDS_IN_THREES, playground=True) as running:
        assert "CARDS playground" in running.get("/").text
        assert running.get("/v1/models").json()["data"][0]["id"] == "mock"
        assert running.post(json={"prompt": "abc", "max_tokens": 3}).status_code == 200
        assert running.get("/health").json() == {"status": "ok"}
