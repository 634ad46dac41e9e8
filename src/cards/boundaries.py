"""When a segment ends. A boundary looks at the logits before a token is drawn, or at the text after it, or both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cards.errors import SettingError, UnknownNameError, check

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Measure = Literal["entropy", "mcp", "evidential"]


@dataclass(frozen=True)
class Boundary:
    """Base: a segment ends at `maximum` tokens (None: only with the answer), and not by choice before `minimum`."""

    minimum: int = 1
    maximum: int | None = None
    reads_text: ClassVar[bool] = False
    reads_logits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self.minimum >= 1, f"A segment's minimum length must be at least 1 token, not {self.minimum}.")
        check(
            self.maximum is None or self.maximum >= self.minimum,
            f"A segment's maximum length ({self.maximum}) must not be below its minimum ({self.minimum}).",
        )

    def uncertainty(self, logits: NDArray[np.floating[Any]]) -> float:
        """Uncertainty of the next token from its logits [vocabulary]; called only if `reads_logits`."""
        raise TypeError(f"{type(self).__name__} does not read logits.")

    def ends_before(self, uncertainty: float) -> bool:
        """Whether a segment long enough ends before a token of this uncertainty."""
        return False

    def ends_after(self, text: str) -> bool:
        """Whether a segment long enough, with this text, ends here; called only where `reads_text`."""
        return False


@dataclass(frozen=True)
class Entropy(Boundary):
    """CARDS: a segment ends where the LM is unsure of the next token (arXiv 2406.16306, section 4.1).

    `measure` of the raw logits (temperature 1, whole vocabulary), compared with `threshold` (tau_u):
    entropy: -sum p log p in nats; mcp: 1 - max p; evidential: V / sum(relu(logit) + 1).
    """

    minimum: int = 4
    maximum: int | None = 64
    threshold: float = 3.0
    measure: Measure = "entropy"
    reads_logits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        known = ("entropy", "mcp", "evidential")
        check(self.measure in known, f"Unknown uncertainty measure {self.measure!r}; known: {', '.join(known)}.")
        check(self.threshold >= 0, f"The uncertainty threshold tau_u must not be negative, got {self.threshold}.")

    def uncertainty(self, logits: NDArray[np.floating[Any]]) -> float:
        import numpy as np

        logits = np.asarray(logits, np.float64)
        if self.measure == "evidential":
            return float(logits.size / (logits.clip(0) + 1).sum())
        p = np.exp(logits - logits.max())
        p /= p.sum()
        if self.measure == "mcp":
            return float(1 - p.max())
        p = p[p > 0]
        return float(-(p * np.log(p)).sum())

    def ends_before(self, uncertainty: float) -> bool:
        return uncertainty >= self.threshold


@dataclass(frozen=True)
class FixedLength(Boundary):
    """Segments of `maximum` tokens (STARS, arXiv 2511.03827; blockwise decoding)."""

    maximum: int | None = 15


@dataclass(frozen=True)
class Punctuation(Boundary):
    """A segment ends after one of `marks`, trailing space aside."""

    maximum: int | None = 64
    marks: str = ".!?;\n"
    reads_text: ClassVar[bool] = True

    def ends_after(self, text: str) -> bool:
        return text.rstrip(" ").endswith(tuple(self.marks))


@dataclass(frozen=True)
class Step(Boundary):
    """A segment ends after `delimiter` (reasoning steps; RSD, arXiv 2501.19324, uses a blank line)."""

    maximum: int | None = 256
    delimiter: str = "\n\n"
    reads_text: ClassVar[bool] = True

    def ends_after(self, text: str) -> bool:
        return self.delimiter in text


@dataclass(frozen=True)
class Whole(Boundary):
    """One segment: the whole answer."""


def read_boundary(text: str) -> Boundary | None:
    """The boundary that a text names: `fixed:15`, `punctuation[:MARKS]`, `step[:DELIMITER]`, `whole`, or None for `entropy`.

    Raises SettingError or UnknownNameError.
    """
    kind, _, detail = text.partition(":")
    detail = unescape(detail)
    if kind not in ("entropy", "fixed", "punctuation", "step", "whole"):
        raise UnknownNameError("boundary", kind, ["entropy", "fixed:15", "punctuation", "step", "whole"])
    if kind == "fixed":
        if not (detail.isdecimal() or not detail):
            raise SettingError(f"The boundary fixed:N takes a number of tokens, for instance fixed:15, got {detail!r}.")
        return FixedLength(maximum=int(detail)) if detail else FixedLength()
    if kind == "punctuation":
        return Punctuation(marks=detail) if detail else Punctuation()
    if kind == "step":
        return Step(delimiter=detail) if detail else Step()
    if detail:
        raise SettingError(f"The boundary {kind} takes no value, got {detail!r}.")
    return Whole() if kind == "whole" else None


def unescape(text: str) -> str:
    r"""Replace \n and \t, which are easy to type in a shell, by the characters that they stand for."""
    return text.replace("\\n", "\n").replace("\\t", "\t")
