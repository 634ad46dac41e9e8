"""`cards methods`: list the methods by family, or explain one."""

from __future__ import annotations

import json
import re
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

import cards
from cards.cli.options import JSON
from cards.methods.base import FAMILIES, Method
from cards.registry import method_class, method_classes
from cards.settings import settings_of

SECTIONS = ("How it works", "Law or guarantee", "Cost", "When to use it", "Source")
INSTALLED = Path(cards.__file__).parent / "pages"  # the wheel has a copy of the pages
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")


def methods(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Method to explain.", show_default=False)] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """List the methods by family, or explain NAME: its formula, settings, cost and source."""
    if name is not None:
        entry = explained(name, method_class(name))
        typer.echo(json.dumps(entry, indent=2, ensure_ascii=False)) if as_json else _show(entry)
    elif as_json:
        entries = [{"name": name, "family": cls.family, "summary": cls.summary} for name, cls in method_classes().items()]
        typer.echo(json.dumps(entries, indent=2, ensure_ascii=False))
    else:
        console = Console(highlight=False, markup=False)
        width = max(map(len, method_classes()))
        for family, members in groupby(method_classes().items(), key=lambda item: item[1].family):
            console.print(FAMILIES.get(family, family), style="bold")
            table = Table.grid(padding=(0, 2))
            table.add_column(no_wrap=True, style="cyan", min_width=width)
            table.add_column(ratio=1)
            for member, cls in members:
                table.add_row(member, cls.summary)
            console.print(table)
            console.print()
        console.print("cards methods NAME explains one.", style="dim")


def explained(name: str, cls: type[Method]) -> dict[str, Any]:
    """Return what is known of a method, in JSON types. Texts are those of its page."""
    settings = [
        {"name": key, "option": item.flag, "values": item.metavar, "default": item.default_text, "meaning": item.help}
        for key, item in settings_of(cls).items()
        if item.typed
    ]
    about = {"name": name, "family": cls.family, "summary": cls.summary, "needs": sorted(cls.needs), "settings": settings}
    page = page_of(name)
    return about | {"page": f"docs/methods/{name}.md" if page else None, "sections": sections_of(page)}


def page_of(name: str) -> str:
    """Return the page of a method; empty for a method of a plug-in."""
    for folder in (INSTALLED, INSTALLED.parents[2] / "docs" / "methods"):
        if (folder / f"{name}.md").exists():
            return (folder / f"{name}.md").read_text(encoding="utf-8")
    return ""


def sections_of(page: str) -> dict[str, str]:
    """Return the text of each of SECTIONS that a page has, without links, which a terminal cannot follow."""
    parts = re.split(r"^## (.+)\n", page, flags=re.M)
    found = {title: LINK.sub(r"\1", text).strip() for title, text in zip(parts[1::2], parts[2::2], strict=True)}
    return {title: found[title] for title in SECTIONS if title in found}


def _show(entry: dict[str, Any]) -> None:
    console = Console(highlight=False, markup=False)
    console.print(entry["name"], style="bold cyan")
    console.print(entry["summary"])
    console.print(f"Needs: {', '.join(entry['needs']) or 'nothing but the LM'}")
    for title, text in entry["sections"].items():
        console.print(f"\n{title}", style="bold")
        console.print(Markdown(text, code_theme="ansi_dark"))
        if title == SECTIONS[0]:
            _show_settings(console, entry["settings"])
    if not entry["sections"]:
        _show_settings(console, entry["settings"])
    if entry["page"]:
        console.print(f"\nPage: {entry['page']}", style="dim")


def _show_settings(console: Console, settings: list[dict[str, str]]) -> None:
    if not settings:
        return
    console.print("\nSettings", style="bold")
    table = Table.grid(padding=(0, 2))
    for style in ("cyan", None, None):
        table.add_column(style=style, no_wrap=style is not None)
    for item in settings:
        table.add_row(item["option"], item["default"], item["meaning"])
    console.print(table)
