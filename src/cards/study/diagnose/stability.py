"""Does a score depend on what it should not: on other texts in the batch, on the form of the prompt, on repetition?"""

from __future__ import annotations

from collections.abc import Sequence

from cards.engines.base import Engine
from cards.events import Prompt, Response
from cards.rewards.base import Reward


async def batch_drift(reward: Reward, prompt: Prompt, texts: Sequence[Response], scores: Sequence[float]) -> float:
    """The largest change of a score when each text is read alone, with nothing remembered."""
    alone = []
    for text in texts:
        reward.forget()
        alone += await reward.score(prompt, [text])
    return max(abs(a - b) for a, b in zip(alone, scores, strict=True))


async def padding_drift(engine: Engine, reward: Reward, prompt: Prompt, texts: Sequence[Response]) -> float:
    """The largest change of a score when the batch holds a text several times as long, which makes padding necessary."""
    longest = max(texts, key=lambda text: len(text.token_ids))
    long = repeated(engine, prompt, longest, 3)
    reward.forget()
    beside = await reward.score(prompt, [*texts, long])
    drift = 0.0
    for text, score in zip(texts, beside, strict=False):
        reward.forget()
        drift = max(drift, abs(score - (await reward.score(prompt, [text]))[0]))
    return drift


def repeated(engine: Engine, prompt: Prompt, answer: Response, times: int) -> Response:
    """The answer, said several times, and finished as it was."""
    ids = answer.token_ids[:-1] if answer.token_ids[-1:] and answer.token_ids[-1] in engine.end_ids else answer.token_ids
    end = answer.token_ids[len(ids) :]
    text = engine.extended(prompt, Response(), ids * times)
    return Response(text.text, (*text.token_ids, *end), answer.finish_reason)
