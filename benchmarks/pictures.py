"""Draw the pictures of docs/concepts.md and docs/index.md from one response of the embedded models.

Run `python benchmarks/pictures.py`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

import cards
from cards.boundaries import Entropy
from cards.events import Response

IMAGES = Path(__file__).parents[1] / "docs" / "images"
QUESTION = "What is a good film to watch tonight?"
SEED = 2
BLUE, ORANGE, GREY = "#1f5fa8", "#d9730d", "#8a8a8a"


async def main() -> None:
    decoder = cards.Decoder("tiny", "tiny", cards.CARDS(target=2.5))
    prompt = decoder.engine.encode([{"role": "user", "content": QUESTION}])
    messages = list(prompt.messages or ())
    result = await decoder.agenerate(messages, seed=SEED, max_tokens=56, trace=True)
    logits = await decoder.engine.logits(prompt, Response(result.text, result.token_ids), len(result.token_ids) + 1)
    entropies = [Entropy().uncertainty(row) for row in logits[:-1]]  # entropies[i] is that before token i
    print(result.text, result.usage.acceptance_rate, [len(s.token_ids) for s in result.segments])
    plt.rcParams.update({"font.size": 10, "svg.hashsalt": "cards", "axes.spines.top": False, "axes.spines.right": False})
    segments(decoder, result, entropies)
    thresholds(result)
    (IMAGES / "trace.html").write_text(result._repr_html_() + "\n", encoding="utf-8")
    await decoder.aclose()


def segments(decoder: cards.Decoder, result: cards.Result, entropies: list[float]) -> None:
    """Plot the uncertainty of each token and the ends of the segments."""
    words = [decoder.engine.tokenizer.decode([token]).strip() or "·" for token in result.token_ids]
    starts = {sum(len(s.token_ids) for s in result.segments[:i]) for i in range(1, len(result.segments))}
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    axes.bar(range(len(words)), entropies, color=[ORANGE if i in starts else BLUE for i in range(len(words))], width=0.8)
    axes.axhline(decoder.engine.entropy_threshold, color=GREY, linestyle="--")
    axes.text(len(words) - 0.5, decoder.engine.entropy_threshold, "$\\tau_u$", color=GREY, va="bottom", ha="right")
    for start in starts:
        axes.axvline(start - 0.5, color=ORANGE, linewidth=1)
    axes.set_xticks(range(len(words)), words, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_ylabel("entropy of the token (nats)")
    save(figure, "segments.svg")


def thresholds(result: cards.Result) -> None:
    """Plot the rewards of all candidates with their thresholds."""
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    end, xs = 0, []
    taus: list[Any] = []
    for segment in result.segments:
        assert segment.reward is not None
        begin, end = end, end + len(segment.token_ids)
        for other in segment.rejected:
            assert other.reward is not None
            axes.plot([begin, begin + len(other.token_ids)], [other.reward] * 2, color=GREY, alpha=0.4, linewidth=1)
            axes.plot(begin + len(other.token_ids), other.reward, "x", color=ORANGE, markersize=6)
        axes.plot([begin, end], [segment.reward] * 2, color=BLUE)
        axes.plot(end, segment.reward, "s" if segment.fallback else "o", color=BLUE, markersize=7)
        axes.annotate(segment.text.strip(), (end, segment.reward), (0, 8), textcoords="offset points", ha="right", fontsize=8)
        xs += [begin, end]
        taus += [segment.threshold] * 2
    axes.plot(xs, taus, color=GREY, linestyle="--", label="threshold")
    axes.plot([], [], "o", color=BLUE, label="accepted")
    axes.plot([], [], "x", color=ORANGE, label="rejected")
    axes.set_xlabel("tokens of the answer")
    axes.set_ylabel("reward")
    axes.margins(y=0.2)
    axes.legend(frameon=False, loc="lower right")
    save(figure, "thresholds.svg")


def save(figure: Figure, name: str) -> None:
    figure.savefig(IMAGES / name, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    asyncio.run(main())
