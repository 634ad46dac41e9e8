"""Methods with a second prompt render it as the first: template variables, the message to continue, and the thinking."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cards import Decoder
from cards.backends.local.engine import TransformersEngine
from cards.engines.mixture import MixtureEngine
from cards.engines.mock import MockEngine
from cards.events import Message, Prompt, Response
from cards.methods import CARDS, CFG, ROSE, BudgetForcing, ContextAwareDecoding
from cards.methods.responses.iad import add_feedback
from cards.methods.tokens.cfg import PromptContrast
from cards.prompts import Chat
from cards.rewards import AfterThinking
from cards.rewards.engines import encode_prompt
from cards.rewards.self_evaluation import conversation
from cards.testing import MockReward

TEMPLATE = (
    "({{ mood | default('calm') }}) {% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
QUESTION, SYSTEM, BEGUN = Message(role="user", content="How was it?"), "Be kind.", "It was"
THINKING = "<think>\nmaybe\n\nit was good\n</think>\n\n"


@pytest.fixture(scope="module")
def lm() -> TransformersEngine:
    engine = TransformersEngine.load("tiny")
    engine.use_template(TEMPLATE)
    return engine


def text_of(system: str | None, mood: str, begun: str) -> str:
    """Return what TEMPLATE makes of the question after a system message."""
    before = "" if system is None else f"system: {system}\n"
    return f"({mood}) {before}user: {QUESTION['content']}\nassistant:{f' {begun}' if begun else ''}"


def encoded(engine: TransformersEngine, system: str | None, mood: str, begun: str) -> Prompt:
    turns = [] if system is None else [Message(role="system", content=system)]
    turns += [QUESTION, *([Message(role="assistant", content=begun)] if begun else [])]
    return engine.encode(Chat(turns, {} if mood == "calm" else {"mood": mood}, continued=bool(begun)))


CASES = [("calm", BEGUN, ""), ("glad", "", ""), ("calm", "", THINKING), ("glad", BEGUN, THINKING)]
RULES: list[tuple[PromptContrast, str | None, str | None]] = [  # with the system messages of the prompt and the other one
    (CFG(guidance=2.0), SYSTEM, None),
    (CFG(guidance=2.0, negative="Be cruel."), SYSTEM, "Be cruel."),
    (ContextAwareDecoding(weight=1.0), SYSTEM, None),
    (ROSE(weight=1.0, reverse="Be cruel."), None, "Be cruel."),
]


def assert_mixed(engine: TransformersEngine, rule: PromptContrast, prompt: Prompt, other: Sequence[int]) -> None:
    """Assert the logits of the formula after each token of a response, with these tokens as the other prompt."""
    response = Response(token_ids=engine.tokenize(" a good film"))

    async def logits(source: Any, prompt: Prompt) -> NDArray[np.float64]:
        rows = (await source.logits(prompt, response, 3)).astype(np.float64)
        return rows - rows.max(-1, keepdims=True)  # type: ignore[no-any-return]

    async def both() -> None:
        own, away = await logits(engine, Prompt("", prompt.token_ids)), await logits(engine, Prompt("", tuple(other)))
        expected = (1.0 if isinstance(rule, ROSE) else 2.0) * own - away  # all the weights are 1
        found = await logits(MixtureEngine(engine, rule), prompt)
        kept = found > -1e6
        assert kept.mean() > 0.9
        assert found[kept] == pytest.approx((expected - expected.max(-1, keepdims=True))[kept], abs=1e-3)
        assert not np.allclose(found[kept], own[kept], atol=0.1)

    asyncio.run(both())


@pytest.mark.parametrize(("mood", "begun", "thinking"), CASES)
@pytest.mark.parametrize(("rule", "system", "other"), RULES, ids=str)
def test_the_other_prompt_differs_only_in_the_system_message(
    lm: TransformersEngine, rule: PromptContrast, system: str | None, other: str | None, mood: str, begun: str, thinking: str
) -> None:
    thought = Response(thinking, lm.tokenize(thinking))
    prompt = encoded(lm, system, mood, begun).followed_by(thought)
    assert prompt.text == text_of(system, mood, begun) + thinking
    assert_mixed(lm, rule, prompt, lm.tokenize(text_of(other, mood, begun)) + thought.token_ids)


@pytest.mark.parametrize(("begun", "thinking"), [("", ""), (BEGUN, ""), ("", THINKING), (BEGUN, THINKING)])
def test_guidance_by_the_last_token_keeps_the_beginning_of_the_response(
    lm: TransformersEngine, begun: str, thinking: str
) -> None:
    thought = Response(thinking, lm.tokenize(thinking))
    prompt = encoded(lm, None, "glad", begun).followed_by(thought)
    kept = lm.tokenize(text_of(None, "glad", ""))[-1:] + (lm.tokenize(f" {begun}") if begun else ()) + thought.token_ids
    assert_mixed(lm, CFG(guidance=2.0), prompt, kept)


@pytest.mark.parametrize(
    ("rule", "other"),
    [
        (ContextAwareDecoding(weight=1.0), "What is it called?"),
        (CFG(guidance=2.0, negative="Be cruel."), "Be cruel."),
        (ROSE(weight=1.0, reverse="Be cruel."), "Be cruel.\n\nIt is Max.\n\nWhat is it called?"),
    ],
    ids=str,
)
def test_raw_text_is_split_before_the_thinking(lm: TransformersEngine, rule: PromptContrast, other: str) -> None:
    thought = Response(THINKING, lm.tokenize(THINKING))
    prompt = lm.encode("It is Max.\n\nWhat is it called?").followed_by(thought)
    assert_mixed(lm, rule, prompt, lm.encode(other).token_ids + thought.token_ids)


class Reading(MockEngine):
    """Remembers the prompts of its logits. It closes its thinking only if `closes`."""

    def __init__(self, closes: bool) -> None:
        law = [0.2, 0.2 * closes, 0.2, 0.2, 0.2, 0.2, 0.2]
        super().__init__(lambda ids: law, ["<think>", "</think>", "x", "y", "\n", " ", "z"])
        self.read: set[str] = set()

    async def logits(self, prompt: Prompt, response: Response, last: int = 1) -> NDArray[np.float32]:
        self.read.add(self.text(prompt.token_ids))
        return await super().logits(prompt, response, last)


@pytest.mark.parametrize("rule", [CFG(temperature=1.0), ContextAwareDecoding(temperature=1.0)], ids=str)
def test_an_answer_after_a_thinking_budget_reads_the_thinking_after_both_prompts(rule: PromptContrast) -> None:
    engine = Reading(closes=False)
    result = Decoder(engine, None, BudgetForcing(most=4, inner=rule))("x\n\ny", max_tokens=60, seed=2)
    thinking = result.text[: result.text.index("</think>") + len("</think>\n\n")]
    assert engine.read == {f"x\n\ny{thinking}", f"y{thinking}"}


@pytest.mark.parametrize("rule", [CFG(), ContextAwareDecoding()], ids=str)
def test_methods_on_a_mixture_read_the_thinking_after_both_prompts(rule: PromptContrast) -> None:
    engine, reward = Reading(closes=True), AfterThinking(MockReward(), opening="<think>", closing="</think>")
    decoder = Decoder(MixtureEngine(engine, rule), reward, CARDS(target=-9.0, temperature=1.0, top_k=None))
    prompt, other = "x\n\ny<think>\n", "\n" if isinstance(rule, CFG) else "y<think>\n"
    result = decoder(prompt, max_tokens=60, seed=2)
    thinking = result.text[: result.text.index("</think>") + len("</think>")]
    assert engine.read == {before + text for before in (prompt, other) for text in ("", thinking)}


async def test_feedback_keeps_the_variables_and_the_beginning_of_the_response(lm: TransformersEngine) -> None:
    thought = Response(THINKING, lm.tokenize(THINKING))
    prompt = encoded(lm, SYSTEM, "glad", BEGUN).followed_by(thought)
    longer = add_feedback(prompt, [await candidate(lm, prompt)], lm)
    assert longer.messages is not None
    assert longer.messages[-1]["content"].startswith("The best answer so far")
    assert longer.text.startswith(f"(glad) system: {SYSTEM}\nuser: The best answer so far")
    assert longer.text.endswith(f"{QUESTION['content']}\nassistant: {BEGUN}{THINKING}")
    assert longer.token_ids[-len(thought.token_ids) :] == thought.token_ids
    raw = add_feedback(lm.encode("x y").followed_by(thought), [await candidate(lm, prompt)], lm)
    assert raw.text.endswith(f"Give a better answer.\n\nx y{THINKING}")
    assert raw.thought == thought


async def candidate(engine: TransformersEngine, prompt: Prompt) -> Any:
    from helpers.proposals import candidates

    from cards.engines.base import Ask

    [segment] = await candidates(engine, Ask(prompt, Response(), 4))
    return segment.__class__(segment.text, segment.token_ids, reward=1.0)


def test_rewards_read_the_thinking_and_the_variables_that_their_template_uses(lm: TransformersEngine) -> None:
    prompt = encoded(lm, SYSTEM, "glad", BEGUN).followed_by(Response(THINKING, lm.tokenize(THINKING)))
    assert encode_prompt(lm, prompt) == prompt
    other = TransformersEngine.load("tiny")
    assert encode_prompt(other, prompt).text.endswith(f"Assistant: {BEGUN}{THINKING}")
    assert conversation(prompt, Response("good")).endswith(f"Assistant: {BEGUN}{THINKING}good")


def test_a_prompt_can_be_taken_back_to_its_beginning(lm: TransformersEngine) -> None:
    prompt = encoded(lm, SYSTEM, "glad", BEGUN)
    one, other = (Response(text, lm.tokenize(text)) for text in (THINKING, " then"))
    assert prompt.followed_by(one).followed_by(other).bare == prompt
    assert prompt.chat_template_kwargs == {"mood": "glad"}
