"""`cards methods`: list the methods by family."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from cards.methods.base import FAMILIES
from cards.registry import method_classes
from cards.settings import settings_of


def methods() -> None:
    """List the methods by family, with their needs, settings and defaults."""
    console = Console(highlight=False, markup=False)
    width = max(map(len, method_classes()))
    for family, members in groupby(method_classes().items(), key=lambda item: item[1].family):
        title = Text(FAMILIES.get(family, family), style="bold")
        table = Table(title=title, title_justify="left", show_lines=True)
        table.add_column("method", no_wrap=True, style="bold", min_width=width)
        table.add_column("needs", min_width=len("segments"))
        table.add_column("description, settings and defaults", ratio=1)
        for name, cls in members:
            settings = [f"{setting.flag}={setting.default_text}" for setting in settings_of(cls).values() if setting.typed]
            table.add_row(name, "\n".join(sorted(cls.needs)), Group(Text(cls.summary), Text(" ".join(settings), style="cyan")))
        console.print(table)
        console.print()
