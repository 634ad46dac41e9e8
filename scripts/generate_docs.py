"""Generate documentation from the code: the list of modules, the reference, and the tables of methods and settings.

Run `python scripts/generate_docs.py` after changing a module docstring, a method or a setting. With `--check` the script
reports outdated pages and writes nothing.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import cards
import cards.methods
import cards.rewards
from cards.methods.base import FAMILIES, Method
from cards.registry import method_classes
from cards.settings import settings_of

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "cards"
DOCS = ROOT / "docs"
REFERENCE = {
    "decoder": (
        "Decoder, events and results",
        ["decoder.Decoder", "streams", "events", "usage.Usage", "profile.Profile", "errors"],
    ),
    "engines": (
        "Engines",
        [
            "engines.base.Engine",
            "engines.ask.Ask",
            "registry.load_engine",
            "backends.local.engine.TransformersEngine",
            "engines.speculative.SpeculativeEngine",
            "engines.mixture",
            "engines.mock.MockEngine",
            "sampling.Sampling",
            "boundaries",
        ],
    ),
    "testing": ("Testing", ["testing"]),
}
METHOD_BASES = [
    "settings.setting",
    "methods.base",
    "methods.segments.driver.AcceptanceMethod",
    "methods.segments.driver.SegmentMethod",
    "methods.search.driver.SearchMethod",
    "methods.search.driver.Search",
    "methods.responses.driver.ResponseMethod",
    "methods.responses.driver.rewards_of",
    "methods.tokens.driver.LogitsMethod",
    "methods.tokens.driver.RewardGuidedMethod",
]


def structure() -> str:
    """Return the page that lists each module with the first paragraph of its docstring, by folder."""
    lines = ["# Structure", "", "One line for each module, written by `scripts/generate_docs.py` from the docstrings.", ""]
    folders = sorted({path.parent for path in SOURCE.rglob("*.py")}, key=lambda folder: (folder != SOURCE, str(folder)))
    for folder in folders:
        name = "src/cards" + (f"/{folder.relative_to(SOURCE)}" if folder != SOURCE else "")
        lines += [f"## {name}", "", first_line(folder / "__init__.py"), ""]
        lines += [
            f"- `{path.relative_to(SOURCE)}`: {first_line(path)}"
            for path in sorted(folder.glob("*.py"))
            if path.stem != "__init__"
        ]
        lines.append("")
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def first_line(path: Path) -> str:
    """Return the first paragraph of a module docstring on one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n\n")[0].replace("\n", " ")


def reference() -> dict[Path, str]:
    """Return the text of each page of the reference, by path."""
    pages = {name: (title, [f"cards.{part}" for part in parts]) for name, (title, parts) in REFERENCE.items()}
    bases = [f"cards.{part}" for part in METHOD_BASES]
    pages["methods"] = ("Methods", [_path(cls) for cls in method_classes().values()] + bases)
    rewards = [cls for name, cls in sorted(vars(cards.rewards).items()) if isinstance(cls, type)]
    bases = ["cards.rewards.base.Reward", "cards.registry.load_reward", "cards.backends.local.rewards.ClassifierReward"]
    pages["rewards"] = ("Rewards", bases + [_path(cls) for cls in rewards])
    return {
        DOCS / "reference" / f"{name}.md": f"# {title}\n\n" + "\n\n".join(f"::: {part}" for part in parts) + "\n"
        for name, (title, parts) in pages.items()
    }


def methods_table(link: str) -> str:
    """Return the table of methods by family. `link` is a format string for the link of a name."""
    lines = ["| Name | What it does | Needs a reward |", "|---|---|---|"]
    for family, title in FAMILIES.items():
        lines.append(f"| **{title}** | | |")
        lines += [
            f"| {link.format(name)} | {cls.summary} | {'yes' if 'reward' in cls.needs else 'no'} |"
            for name, cls in method_classes().items()
            if cls.family == family
        ]
    return "\n".join(lines) + "\n"


def settings_table(cls: type[Method]) -> str:
    """Return the table of settings of a method."""
    lines = ["| Setting | Default | Range | Meaning |", "|---|---|---|---|"]
    for name, item in settings_of(cls).items():
        kinds = " or ".join(f"`{kind}`" for kind in item.kinds if isinstance(kind, str))
        values = "yes or no" if bool in item.kinds else " or ".join(filter(None, (kinds, item.spec.range)))
        lines.append(f"| `{name}` | `{item.default_text}` | {values} | {item.help} |")
    return "\n".join(lines) + "\n"


def with_tables(text: str, tables: dict[str, str]) -> str:
    """Return a page with each table replaced between `<!-- NAME -->` and `<!-- /... -->`."""
    for name, table in tables.items():
        kind = name.partition(":")[0]
        filled = partial(lambda new, found: f"{found[1]}\n{new}\n{found[2]}", table)
        text = re.sub(rf"(<!-- {re.escape(name)} -->\n)[\s\S]*?(<!-- /{kind} -->)", filled, text)
    return text


def pages() -> dict[Path, str]:
    """Return the text of each generated page, by path."""
    texts = {DOCS / "structure.md": structure()} | reference()
    readme, index = ROOT / "README.md", DOCS / "methods" / "index.md"
    texts[readme] = with_tables(readme.read_text(encoding="utf-8"), {"methods": methods_table("[`{0}`](docs/methods/{0}.md)")})
    texts[index] = with_tables(index.read_text(encoding="utf-8"), {"methods": methods_table("[`{0}`]({0}.md)")})
    for name, cls in method_classes().items():
        page = DOCS / "methods" / f"{name}.md"
        texts[page] = with_tables(page.read_text(encoding="utf-8"), {f"settings: {name}": settings_table(cls)})
    return texts


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=inspect.cleandoc(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="Report outdated pages and exit with status 1, without writing.")
    check = parser.parse_args(None if arguments is None else list(arguments)).check
    outdated = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in outdated:
        print(f"{'outdated' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(pages()[path], encoding="utf-8")
    return int(check and bool(outdated))


if __name__ == "__main__":
    sys.exit(main())
