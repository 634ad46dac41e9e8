"""Generate documentation from code and results: the list of modules, the reference, and the tables of methods, settings,
clients, the load of the server, and the choice of a method.

Run `python scripts/generate_docs.py` after changing a module docstring, a method or a setting. With `--check` the script
reports outdated pages and writes nothing.
"""

from __future__ import annotations

import argparse
import ast
import csv
import inspect
import json
import re
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

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
BUDGETS = (4, 8, 16, 24)  # compute of a response, in plain samples
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


def clients_table() -> str:
    """Return the table of clients and their features, from the results of `tests/clients/run.py`."""
    found = json.loads((ROOT / "tests" / "clients" / "results.json").read_text(encoding="utf-8"))
    features = list(dict.fromkeys(name for row in found["clients"] for name in row["features"]))
    lines = [f"| Client | Version | {' | '.join(features)} |", "|---|---|" + "---|" * len(features)]
    for row in found["clients"]:
        words = {name: "no" if error else "yes" for name, error in row["features"].items()}
        lines.append(f"| {row['title']} | {row['version']} | {' | '.join(words.get(name, '') for name in features)} |")
    return "\n".join(lines) + f"\n\nMeasured on {found['date']}.\n"


def load_table() -> str:
    """Return the figures of the parts of `benchmarks/serve_load.py` that were measured."""
    found = json.loads((ROOT / "benchmarks" / "results" / "serve_load.json").read_text(encoding="utf-8"))
    rows: list[tuple[str, str]] = []
    if load := found.get("load"):
        outcomes, memory = load["outcomes"], load["resident_MiB"]
        faults = {name: n for name, n in outcomes.items() if name not in ("complete", "429", "cut by the deadline")}
        rows += [
            ("streaming clients, seconds", f"{load['options']['clients']}, {load['options']['seconds']:g}"),
            ("complete responses", f"{outcomes['complete']} ({load['tokens_per_second']:.0f} tokens/s)"),
            ("requests with status 429", f"{outcomes.get('429', 0)}"),
            ("other errors", _counts(faults) or "0"),
            ("responses with a JSON schema", _counts(load["structured"])),
            ("memory at the start and the end, MiB", f"{memory['start']:.0f}, {memory['end']:.0f}"),
            ("slots, responses and requests in use at the end", f"{_in_use(load):g}"),
        ]
    if growth := found.get("growth"):
        rows += [
            ("mixed requests by status", _counts(growth["statuses"])),
            ("memory before them and after each thousand, MiB", ", ".join(f"{mib:.0f}" for mib in growth["resident_MiB"])),
            ("slots, responses and requests in use at the end", f"{_in_use(growth):g}"),
        ]
    if overhead := found.get("overhead"):
        rows += [
            ("wait beyond the time in the usage record, ms", f"{overhead['milliseconds_beyond_the_books']:.1f}"),
            ("time over that of the library", f"{overhead['server_over_library']:.3f}"),
        ]
    return "| Figure | Value |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()) if count)


def _in_use(part: dict[str, Any]) -> float:
    return float(sum(part["left_at_the_end"].values()))


def choice_tables(name: str) -> str:
    """Return the best settings within each budget, and the best setting of each method, from a bench's results NAME.csv."""
    with (ROOT / "benchmarks" / "results" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    plain = next(float(row["flops"]) for row in rows if row["label"] == "vanilla")
    rows = [row for row in rows if row["label"] != "vanilla"]
    for row in rows:
        row["cost"], row["method"] = f"{float(row['flops']) / plain:.1f}", row["label"].partition(":")[0]

    def ranked(budget: float) -> list[dict[str, str]]:
        """Return the best setting of each method within a budget, the best method first."""
        best: dict[str, dict[str, str]] = {}
        for row in sorted(rows, key=lambda row: -float(row["against.gain.mean"])):
            if float(row["cost"]) <= budget:
                best.setdefault(row["method"], row)
        return list(best.values())

    steered = {name for name, cls in method_classes().items() if "reward" in cls.needs}
    lines = ["| Budget | First | Second | Third | `best-of-n` |", "|---|---|---|---|---|"]
    for budget in BUDGETS:
        found = [row for row in ranked(budget) if row["method"] in steered]
        rivals = [row for row in found if row["method"] == "best-of-n"]
        cells = [f"`{row['label']}` {_gain(row)}" for row in [*found[:3], *rivals]]
        lines.append(f"| {budget} plain samples | {' | '.join(cells)} |")
    lines += ["", "| Method at its best setting | Gain | Cost | Tokens | nll+ | Reward |", "|---|---|---|---|---|---|"]
    lines += [
        f"| `{row['label']}` | {_gain(row)} | {row['cost']} | {float(row['kept']):.0f} | {float(row['excess_nll']):.1f} "
        f"| {'yes' if row['method'] in steered else 'no'} |"
        for row in ranked(BUDGETS[-1])
    ]
    return "\n".join(lines) + "\n"


def _gain(row: dict[str, str]) -> str:
    mean, low, high = (float(row[f"against.gain.{part}"]) for part in ("mean", "low", "high"))
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


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
    clients = DOCS / "clients.md"
    texts[clients] = with_tables(clients.read_text(encoding="utf-8"), {"clients": clients_table()})
    serve = DOCS / "serve.md"
    texts[serve] = with_tables(serve.read_text(encoding="utf-8"), {"load": load_table()})
    choice = DOCS / "which-method.md"
    text = choice.read_text(encoding="utf-8")
    tables = {f"choice: {name}": choice_tables(name) for name in re.findall(r"^<!-- choice: ([\w-]+) -->", text, re.M)}
    texts[choice] = with_tables(text, tables)
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
