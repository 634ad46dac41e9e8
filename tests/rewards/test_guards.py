"""Guard models and LLM judges: the log-odds of a verdict, compared with the model's own forward pass."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import torch
import transformers as hf
from helpers.text_tokenizers import text_tokenizer

from cards.backends.local.engine import TransformersEngine
from cards.engines.mock import MockEngine
from cards.errors import MismatchError, RewardError, SettingError, UnknownNameError
from cards.events import FinishReason, Message, Prompt, Response
from cards.registry import load_reward
from cards.rewards import GuardReward
from cards.rewards.guards import GUARDS, guard

CONTEXT = 512
# Templates with the structure of those of known guards: what they write, and how they read the messages
TURNS = "{% for m in messages %}{{ 'User' if m.role == 'user' else 'Agent' }}: {{ m.content | trim }}\n\n{% endfor %}"
TEMPLATES = {
    "llama-guard-3": "{{ bos_token }}Task: check.\n" + TURNS + "Assess the last.</s>assistant\n\n",
    "llama-guard-4": "{{ bos_token }}Task: check.\n"
    "{% for m in messages %}{% for part in m.content | selectattr('type', 'equalto', 'text') %}"
    "{{ m.role }}: {{ part.text | trim }}\n\n{% endfor %}{% endfor %}Assess the last.</s>assistant",
    "shieldgemma": "{{ bos_token }}" + TURNS + "Our principle:\n\n* {{ guideline | trim }}\n\nDoes it violate that?\n\n",
    "granite-guardian": "user "
    + TURNS
    + "Risk: {{ guardian_config['risk_name'] }}{% if add_generation_prompt %}assistant {% endif %}",
    "granite-guardian-3.3": "user " + TURNS + "Risk: {{ guardian_config['criteria_id'] }}assistant ",
    "qwen3guard": "user\n" + TURNS + "Safety?</s>\nassistant\n<think>\n\n</think>\n\n",
}
POLICY = {"shieldgemma": "do not rain"}
CHAT: list[Message] = [
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "sat"},
    {"role": "user", "content": "on the mat?"},
]
ANSWER = "The cat sat on the mat, 日本 да!"


def engine(kind: str, template: str | None, name: str = "guard") -> TransformersEngine:
    tokenizer = copy.copy(text_tokenizer(kind))
    tokenizer.chat_template = template
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = hf.LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, initializer_range=0.3, **sizes)
    return TransformersEngine(hf.LlamaForCausalLM(config), tokenizer, slots=8, name=name)


def rendered(lm: TransformersEngine, messages: Sequence[Any], variables: dict[str, Any]) -> list[int]:
    text = lm.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, **variables)
    return list(lm.tokenize(str(text)))


@torch.no_grad()
def log_odds(lm: TransformersEngine, read: list[int], lead: str, good: Sequence[str], bad: Sequence[str]) -> float:
    """log P(good) - log P(bad) of the continuations of `read` by the model's own forward pass, without `lead`'s own share."""

    def log_probability(text: str) -> float:
        new = list(lm.tokenize(lead + text))
        logits = lm.model(torch.tensor([[*read, *new[:-1]]])).logits[0, -len(new) :].double()
        return float(logits.log_softmax(-1).gather(1, torch.tensor(new)[:, None]).sum())

    sums = [torch.tensor([log_probability(text) for text in texts]).logsumexp(0) for texts in (good, bad)]
    return float(sums[0] - sums[1])


@pytest.mark.parametrize("kind", ["byte_level", "llama_2", "gemma"])
@pytest.mark.parametrize("preset", TEMPLATES)
async def test_a_preset_gives_the_log_odds_of_its_verdicts_under_the_guards_own_template(preset: str, kind: str) -> None:
    lm, known = engine(kind, TEMPLATES[preset]), GUARDS[preset]
    reward = GuardReward(lm, preset=preset, policy=POLICY.get(preset))
    variables = dict(known.variables) | ({known.policy: POLICY[preset]} if known.policy else {})
    prompt = Prompt("ignored", messages=tuple(CHAT))
    ends: list[FinishReason] = ["length", "stop"]
    answers = [Response(), Response(ANSWER[:7]), *(Response(ANSWER, finish_reason=end) for end in ends)]
    expected = []
    for answer in answers:
        turns: list[Any] = [*CHAT, {"role": "assistant", "content": answer.text}]
        if preset == "llama-guard-4":
            turns = [turn | {"content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
        expected.append(log_odds(lm, rendered(lm, turns, variables), known.lead, known.good, known.bad))
    found = await reward.score(prompt, answers)
    assert found == pytest.approx(expected, abs=1e-4)
    assert len({round(score, 3) for score in found}) == 3  # the end of a response changes nothing, its text does
    alone = [(await reward.score(prompt, [answer]))[0] for answer in answers]
    reward.forget()
    fresh = [(await reward.score(prompt, [answer]))[0] for answer in answers]
    assert alone == pytest.approx(found, abs=1e-4)
    assert fresh == pytest.approx(found, abs=1e-4)
    assert (reward.scale, reward.target) == ("logit", 0.0)
    await reward.aclose()


@pytest.fixture
async def plain() -> AsyncIterator[TransformersEngine]:
    lm = engine("byte_level", TEMPLATES["llama-guard-3"])
    yield lm
    await lm.aclose()


VERDICTS = [
    ("safe", "unsafe", ""),  # one token shared, then several
    ("rain is the cat", "rain is wet", "\n\n"),
    (("the", "cat"), ("mat", "water!"), "So: "),
]


@pytest.mark.parametrize(("good", "bad", "lead"), VERDICTS)
async def test_verdicts_of_several_tokens_and_several_verdicts_are_exact(
    plain: TransformersEngine, good: str | tuple[str, ...], bad: str | tuple[str, ...], lead: str
) -> None:
    template = "{{ bos_token }}" + TURNS + "{{ policy }}:"
    reward = GuardReward(plain, template=template, good=good, bad=bad, lead=lead, policy="be kind")
    mirrored = GuardReward(plain, template=template, good=bad, bad=good, lead=lead, policy="be kind")
    text = f"<s>User: the cat\n\nAgent: {ANSWER}\n\nbe kind:"
    texts = [(one,) if isinstance(one, str) else one for one in (good, bad)]
    expected = log_odds(plain, list(plain.tokenize(text)), lead, *texts)
    prompt = Prompt("the cat")
    assert await reward.score(prompt, [Response(ANSWER)]) == pytest.approx([expected], abs=1e-4)
    assert await mirrored.score(prompt, [Response(ANSWER)]) == pytest.approx([-expected], abs=1e-4)
    assert not reward.single


async def test_a_question_is_asked_as_a_user_message(plain: TransformersEngine) -> None:
    question = "{policy} {response} follows {prompt}? {other}"
    reward = GuardReward(plain, question=question, policy="Be kind.", good="the", bad="cat")
    asked = f"Be kind. {ANSWER} follows User: the cat\n\nAssistant: sat\n\nUser: on the mat?? {{other}}"
    expected = log_odds(plain, rendered(plain, [{"role": "user", "content": asked}], {}), "", ["the"], ["cat"])
    prompt = Prompt("ignored", messages=tuple(CHAT))
    assert await reward.score(prompt, [Response(ANSWER)]) == pytest.approx([expected], abs=1e-4)


async def test_a_system_message_becomes_part_of_the_first_user_message(plain: TransformersEngine) -> None:
    reward = GuardReward(plain, preset="llama-guard-3")
    system: Message = {"role": "system", "content": "rain"}
    merged: Message = {"role": "user", "content": "rain\n\nthe cat"}
    chats = [(system, *CHAT), (merged, *CHAT[1:])]
    first, second = [await reward.score(Prompt("", messages=chat), [Response("sat")]) for chat in chats]
    assert first == pytest.approx(second, abs=1e-4)


async def test_an_engine_with_log_probabilities_only_gives_the_same_reward(plain: TransformersEngine) -> None:
    reward = GuardReward(plain, preset="llama-guard-3", good="c", bad="m")
    assert reward.single
    expected = await reward.score(Prompt("the cat"), [Response("sat")])
    plain.has = frozenset({"segments", "logprobs"})  # type: ignore[misc]
    assert await reward.score(Prompt("the cat"), [Response("sat")]) == pytest.approx(expected, abs=1e-5)
    plain.has = frozenset({"segments"})  # type: ignore[misc]
    with pytest.raises(MismatchError, match="log-probabilities"):
        GuardReward(plain, preset="llama-guard-3")


async def test_text_beyond_the_context_of_the_guard_is_a_reward_error(plain: TransformersEngine) -> None:
    reward = GuardReward(plain, preset="llama-guard-3")
    with pytest.raises(RewardError, match="context of 'guard' is 512"):
        await reward.score(Prompt("the cat"), [Response("q" * CONTEXT)])


def test_what_cannot_be_read_is_refused_when_the_reward_is_made() -> None:
    mock = MockEngine(lambda ids: [1.0] * 6, list("abcdef"), name="letters")
    with pytest.raises(SettingError, match="must not begin with one another"):
        GuardReward(mock, question="{response}", good="ab", bad="abc")
    with pytest.raises(SettingError, match="cannot be written in the tokens"):
        GuardReward(mock, question="{response}", good="a", bad="xa")
    with pytest.raises(SettingError, match="give good and bad"):
        GuardReward(mock, question="{response}", good="a")
    with pytest.raises(SettingError, match=r"must contain \{response\} or"):
        GuardReward(mock, question="?", good="a", bad="b")
    with pytest.raises(SettingError, match="if and only if"):
        GuardReward(mock, question="{response}", policy="be kind", good="a", bad="b")
    with pytest.raises(SettingError, match="only one of preset"):
        GuardReward(mock, preset="qwen3guard", template="{{ messages }}", good="a", bad="b")
    with pytest.raises(MismatchError, match="renders chat templates"):
        GuardReward(mock, template="{{ messages }}", good="a", bad="b")
    with pytest.raises(SettingError, match="needs a policy"):
        GuardReward(mock, preset="shieldgemma")
    with pytest.raises(SettingError, match="no place for a policy"):
        GuardReward(mock, preset="llama-guard-3", policy="be kind")
    with pytest.raises(SettingError, match="JSON object"):
        GuardReward(mock, preset="llama-guard-3", variables="[1]")
    with pytest.raises(UnknownNameError, match="Did you mean 'llama-guard-3'"):
        GuardReward(mock, preset="llama-guard3")
    with pytest.raises(SettingError, match=r"not that of a known guard model.*llama-guard-4"):
        GuardReward(mock)
    with pytest.raises(SettingError, match="does not use the argument 'guardian_config'"):
        GuardReward(engine("byte_level", TEMPLATES["llama-guard-3"]), preset="granite-guardian")


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("meta-llama/Llama-Guard-4-12B", "llama-guard-4"),
        ("meta-llama/Llama-Guard-3-1B", "llama-guard-3"),
        ("meta-llama/LlamaGuard-7b", "llama-guard"),
        ("google/shieldgemma-2b", "shieldgemma"),
        ("ibm-granite/granite-guardian-3.3-8b", "granite-guardian-3.3"),
        ("ibm-granite/granite-guardian-3.1-2b", "granite-guardian"),
        ("Qwen/Qwen3Guard-Gen-0.6B", "qwen3guard"),
    ],
)
def test_the_name_of_a_model_chooses_its_preset(name: str, preset: str) -> None:
    assert guard(None, name) is GUARDS[preset]


def test_a_judge_has_a_name_with_options() -> None:
    name = "guard:tiny?question=Is {response} kind?&good=Yes&bad=No&bad=Maybe&target=1"
    prompt, responses = Prompt("Hello!", messages=({"role": "user", "content": "Hello!"},)), [Response("Hi."), Response("Bah.")]

    async def scores() -> tuple[list[float], list[float]]:
        named = load_reward(name, device="cpu")
        assert isinstance(named, GuardReward)
        assert named.target == 1.0
        made = GuardReward(named.model, question="Is {response} kind?", good="Yes", bad=["No", "Maybe"])
        found = await named.score(prompt, responses), await made.score(prompt, responses)
        await named.aclose()
        return found

    first, second = asyncio.run(scores())
    assert first == pytest.approx(second, abs=1e-4)
    assert first[0] != first[1]
