"""A quick part of the sweep over families, and its published tables. `benchmarks/families.py` is the whole sweep."""

import json

import pytest

import families


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "family", "dtype", "path"),
    [
        ("lm", "gpt2", "bfloat16", "slots"),
        ("lm", "gemma3_text", "float32", "slots"),
        ("lm", "qwen3_next", "float32", "own cache"),
        ("lm", "dory", "bfloat16", "own cache"),  # its layers run several times in a pass
        ("lm", "bamba", "float32", "whole text"),
        ("lm", "roberta", "bfloat16", "refused"),
        ("lm", "roformer", "bfloat16", "refused"),
        ("rm", "gpt2", "bfloat16", "slots"),
        ("rm", "xlnet", "bfloat16", "equal"),
        ("rm", "nystromformer", "float32", "equal"),
        ("rm", "canine", "float32", "equal"),
        ("rm", "t5", "bfloat16", "padded"),
    ],
)
def test_a_family_is_exact_or_refused(kind: str, family: str, dtype: str, path: str) -> None:
    found = families.check(kind, family, dtype)
    assert found["path"] == path
    assert not found.get("wrong")


def test_no_family_is_wrong_and_the_page_has_the_results() -> None:
    results = json.loads(families.RESULTS.read_text())
    assert [name for name, runs in results.items() if any(run.get("wrong") for run in runs.values())] == []
    page = families.PAGE.read_text(encoding="utf-8")
    assert all(families.table(results, kind) in page for kind in families.KINDS)
