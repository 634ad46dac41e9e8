"""The second domain: stories that must contain given words, so that every response can be checked exactly."""

from __future__ import annotations

import random
import re

NAMES = (
    "apple basket bell bird boat book bread bridge candle cat chair cloud coat coin dog door dream egg farmer field "
    "fire fish flower forest friend garden gold hat hill horse house island king lake lamp letter mirror moon mountain mouse "
    "queen rain ring river road rose sea ship shoe snow song star stone storm sun table tower tree village wall "
    "well window winter wolf "
)
WORDS = NAMES.split()
PROMPT = "Write a short story that contains the words {}, {} and {}.\n\nOnce upon a time"


def required(prompt: str) -> list[str]:
    found = re.search(r"the words (\w+), (\w+) and (\w+)\.", prompt)
    return list(found.groups()) if found else []


def share(prompt: str, response: str) -> float:
    """Return the share of the required words that occur in the response."""
    words = set(re.findall(r"\w+", response.lower()))
    needed = required(prompt)
    return sum(word in words for word in needed) / len(needed)


def complete(prompt: str, response: str) -> float:
    """Return 1 if all required words occur in the response, else 0."""
    return float(share(prompt, response) == 1)


def prompts(count: int = 200) -> list[dict[str, str]]:
    draw = random.Random(0)
    return [{"id": f"words-{i}", "group": "words", "prompt": PROMPT.format(*draw.sample(WORDS, 3))} for i in range(count)]
