"""Names of local models, which load under a spinner instead of download bars."""

from __future__ import annotations

import pytest

from cards.cli.models import is_local


@pytest.mark.parametrize(
    "name", ["tiny", "tiny-gold", "json", "regex:a/b", "implicit:tiny-aligned,tiny", "process:value:tiny", "tiny+json", "."]
)
def test_local(name: str) -> None:
    assert is_local(name)


@pytest.mark.parametrize(
    "name", ["org/model", "implicit:tiny,org/model", "self-evaluation:org/model", "process:steps:org/model"]
)
def test_elsewhere(name: str) -> None:
    assert not is_local(name)
