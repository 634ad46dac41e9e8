"""The thinking of reasoning models: where it begins and ends in a text."""

from __future__ import annotations

from dataclasses import dataclass

from cards.errors import check


@dataclass(frozen=True, slots=True)
class Markers:
    """The texts that begin and end the thinking. Raises SettingError if one is empty."""

    opening: str = "<think>"
    closing: str = "</think>"

    def __post_init__(self) -> None:
        check(bool(self.opening and self.closing), "The markers of the thinking must not be empty: give opening and closing.")

    def opened(self, prompt: str) -> str | None:
        """Return the prompt without the opening marker at its end, or None if it does not end with one."""
        before, marker, after = prompt.rpartition(self.opening)
        return before if marker and not after.strip() else None

    def may_think(self, text: str, opened: bool) -> bool:
        """Return whether the beginning of a response is thinking, or may become it."""
        start = text.lstrip()
        return opened or self.opening.startswith(start) or start.startswith(self.opening)

    def answer(self, text: str, opened: bool, finished: bool) -> str:
        """Return a response without its thinking: the text outside all blocks of it.

        `opened` says that the prompt has the first opening marker. It is also missing if a closing marker comes first. Unless
        the text is `finished`, its end may begin an opening marker, which is left out.
        """
        first, end = text.find(self.opening), text.find(self.closing)
        thinking = opened or 0 <= end < (first if first >= 0 else len(text))
        at, parts = 0, list[str]()
        while True:
            marker = self.closing if thinking else self.opening
            found = text.find(marker, at)
            if not thinking:
                parts.append(text[at:] if found < 0 else text[at:found])
            if found < 0:
                break
            at, thinking = found + len(marker), not thinking
        if not (thinking or finished):
            held = max((n for n in range(1, len(self.opening)) if parts[-1].endswith(self.opening[:n])), default=0)
            parts[-1] = parts[-1][: len(parts[-1]) - held]
        answer = "".join(parts)
        return answer if answer == text else answer.lstrip()


# Of Qwen3, DeepSeek-R1 and most others; Magistral; Seed-OSS; Command A Reasoning; gpt-oss; OpenThinker; Kimi-VL
KNOWN = (
    Markers(),
    Markers("[THINK]", "[/THINK]"),
    Markers("<seed:think>", "</seed:think>"),
    Markers("<|START_THINKING|>", "<|END_THINKING|>"),
    Markers("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    Markers("<|begin_of_thought|>", "<|end_of_thought|>"),
    Markers("\u25c1think\u25b7", "\u25c1/think\u25b7"),
)


def markers_of(template: str | None) -> Markers | None:
    """Return the markers that a chat template has, or None."""
    return next((known for known in KNOWN if known.closing in (template or "")), None)
