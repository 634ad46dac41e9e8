"""Boundaries: rules that end a segment, based on the logits before a token, on the text after it, or on both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cards.errors import SettingError, UnknownNameError, check
from cards.words import SENTENCE_END

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Measure = Literal["entropy", "mcp", "evidential"]


@dataclass(frozen=True)
class Boundary:
    """Base class of boundaries. A segment has at most `maximum` tokens (None: no limit).

    The boundary cannot end a segment before `minimum` tokens; the end of the response can. Raises SettingError.
    """

    minimum: int = 1
    maximum: int | None = None
    reads_text: ClassVar[bool] = False
    reads_logits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self.minimum >= 1, f"A segment's minimum length must be at least 1 token, got {self.minimum}.")
        check(
            self.maximum is None or self.maximum >= self.minimum,
            f"A segment's maximum length must be at least its minimum length of {self.minimum}, got {self.maximum}.",
        )

    def uncertainty(self, logits: NDArray[np.floating[Any]]) -> float:
        """Return the uncertainty of the next token from its logits [vocabulary]. Called only if `reads_logits`."""
        raise TypeError(f"{type(self).__name__} does not read logits.")

    def ends_before(self, uncertainty: float) -> bool:
        """Return whether a segment of at least `minimum` tokens ends before a token of this uncertainty."""
        return False

    def ends_after(self, text: str) -> bool:
        """Return whether a segment of at least `minimum` tokens ends after this text. Called only if `reads_text`."""
        return False


@dataclass(frozen=True)
class Entropy(Boundary):
    """End a segment before a token that the LM is uncertain of (CARDS, arXiv 2406.16306, section 4.1).

    A segment ends if `measure` of the raw logits (temperature 1, whole vocabulary) reaches `threshold` (tau_u).
    entropy: -sum p log p in nats; mcp: 1 - max p; evidential: V / sum(relu(logit) + 1). Tokens that a grammar or a mixture
    excludes count for none of them: they have no probability, and V is the number of the others.
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
        check(self.threshold >= 0, f"The uncertainty threshold tau_u must be at least 0, got {self.threshold}.")

    def uncertainty(self, logits: NDArray[np.floating[Any]]) -> float:
        import numpy as np

        logits = np.asarray(logits, np.float64)
        if self.measure == "evidential":
            kept = logits[logits > -np.inf]
            return float(kept.size / (kept.clip(0) + 1).sum())
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
    """End a segment after `maximum` tokens (STARS, arXiv 2511.03827; blockwise decoding)."""

    maximum: int | None = 15


@dataclass(frozen=True)
class Punctuation(Boundary):
    """End a segment after one of `marks`, ignoring trailing spaces.

    None means a semicolon, an ellipsis, a newline, or a mark that ends sentences in any script (Unicode's Sentence_Terminal).
    """

    maximum: int | None = 64
    marks: str | None = None
    reads_text: ClassVar[bool] = True

    def ends_after(self, text: str) -> bool:
        last = text.rstrip(" ")[-1:]
        return bool(last) and (SENTENCE_END.match(last) is not None if self.marks is None else last in self.marks)


@dataclass(frozen=True)
class Step(Boundary):
    """End a segment after `delimiter`, for reasoning steps (RSD, arXiv 2501.19324, uses a blank line)."""

    maximum: int | None = 256
    delimiter: str = "\n\n"
    reads_text: ClassVar[bool] = True

    def ends_after(self, text: str) -> bool:
        return self.delimiter in text


@dataclass(frozen=True)
class Whole(Boundary):
    """Use the whole response as one segment."""


def read_boundary(text: str) -> Boundary | None:
    """Parse `entropy`, `fixed[:N]`, `punctuation[:MARKS]`, `step[:DELIMITER]` or `whole`.

    Return None for `entropy`: the caller knows the threshold. Raises SettingError or UnknownNameError.
    """
    kind, _, detail = text.partition(":")
    detail = unescape(detail)
    if kind not in ("entropy", "fixed", "punctuation", "step", "whole"):
        raise UnknownNameError("boundary", kind, ["entropy", "fixed:15", "punctuation", "step", "whole"])
    if kind == "fixed":
        if not (detail.isdecimal() or not detail):
            raise SettingError(f"The boundary fixed:N needs a number of tokens, such as fixed:15, got {detail!r}.")
        return FixedLength(maximum=int(detail)) if detail else FixedLength()
    if kind == "punctuation":
        return Punctuation(marks=detail) if detail else Punctuation()
    if kind == "step":
        return Step(delimiter=detail) if detail else Step()
    if detail:
        raise SettingError(f"The boundary {kind} takes no value, got {detail!r}.")
    return Whole() if kind == "whole" else None


def boundary_text(boundary: Boundary) -> str:
    """Return a boundary in the notation of `read_boundary`, without the values that it cannot express."""
    match boundary:
        case FixedLength(maximum=int(count)):
            return f"fixed:{count}"
        case Punctuation(marks=str(detail)) | Step(delimiter=str(detail)) if detail != Step.delimiter:
            return f"{type(boundary).__name__.lower()}:" + detail.replace("\n", "\\n").replace("\t", "\\t")
    return type(boundary).__name__.lower()


def unescape(text: str) -> str:
    r"""Replace the escapes \n and \t, which are easy to type in a shell, with a newline and a tab."""
    return text.replace("\\n", "\n").replace("\\t", "\t")
