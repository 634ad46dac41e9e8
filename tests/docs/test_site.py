"""The site builds without a warning, and its pages load nothing from other hosts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cards.registry import method_classes

ROOT = Path(__file__).parents[2]
LOADS = re.compile(
    r"<(?:script|img|iframe)[^>]*\ssrc=[\"']?(?:https?:)?//|<link[^>]*rel=[\"']?(?:stylesheet|preconnect)[^>]*href=[\"']?https?:"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_pages_load_nothing_from_other_hosts(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(method_classes())
    assert not [page for page in pages if LOADS.search(page.read_text())]


def test_the_reference_shows_what_the_docstrings_say(site: Path) -> None:
    assert "Raises MismatchError" in (site / "reference/decoder.html").read_text()


def test_the_list_of_methods_is_whole(site: Path) -> None:
    index = (ROOT / "docs/methods/index.md").read_text()
    assert set(re.findall(r"^\| \[`([a-z-]+)`\]", index, re.M)) == set(method_classes())
