"""The tutorials of CONTRIBUTING.md work as shown: their files are written, their commands run, and the outputs compared."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
TUTORIALS = ["Write a method", "Write a reward", "Write a back end"]
SHIPPING = "Ship them in a package"
BLOCKS = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
FILE = re.compile(r"# (\S+\.\w+)\n")
SITE = "site"  # where the tutorials' package is installed, so that the environment of the tests stays as it is
PROGRAMS = {
    "python": [sys.executable],
    "cards": [sys.executable, "-m", "cards"],
    "pip": [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"],
}
INSTALL = ["--no-deps", "--no-build-isolation", "--target", SITE]


def write_files(section: str, folder: Path) -> None:
    """Write the blocks of a section to the files that their first lines name; blocks of the same file follow each other."""
    for _, block in BLOCKS.findall(SECTIONS[section]):
        if found := FILE.match(block):
            text = block if found[1].endswith(".py") else block[found.end() :]  # not every format has comments
            with (folder / found[1]).open("a", encoding="utf-8") as file:
                file.write(text)


def run(command: str, folder: Path) -> str:
    """Run a command of a page in a folder, and return what it prints."""
    program, *arguments = shlex.split(command)
    arguments += INSTALL if program == "pip" else []
    paths = [str(folder / SITE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "default"}
    ran = subprocess.run([*PROGRAMS[program], *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
    return ran.stdout


def run_commands(section: str, folder: Path) -> list[str]:
    """Run the commands of a section in order, compare the outputs that it shows, and return all outputs."""
    outputs = []
    for kind, block in BLOCKS.findall(SECTIONS[section]):
        if kind == "console":
            for command, shown in re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", block.replace(" \\\n", " "), re.M):
                outputs.append(run(command, folder))
                assert not shown or outputs[-1] == shown, command
    return outputs


@pytest.mark.parametrize("section", TUTORIALS)
def test_a_tutorial_works_in_an_empty_folder(section: str, tmp_path: Path) -> None:
    if section == "Write a back end":
        write_files("Write a reward", tmp_path)  # it says that it uses this reward
    write_files(section, tmp_path)
    outputs = run_commands(section, tmp_path)
    assert any(" passed" in output for output in outputs)


def test_the_package_of_the_tutorials_can_be_installed_and_used(tmp_path: Path) -> None:
    for section in (*TUTORIALS, SHIPPING):
        write_files(section, tmp_path)
    *_, generated, methods = run_commands(SHIPPING, tmp_path)
    assert generated.strip()
    assert {"quantile-of-n", "first-good"} <= set(methods.split())


def test_code_fits_80_columns_and_links_lead_somewhere() -> None:
    for kind, block in BLOCKS.findall(PAGE):
        assert all(len(line) <= 80 for line in block.splitlines()), kind
    root = Path(__file__).parents[2]
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (root / target).exists(), target
