"""`cards preferences`: a file of prompts in, a preference data set out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cards.boundaries import unescape
from cards.cli.generate import load
from cards.cli.options import MODEL, REWARD, with_placement
from cards.cli.settings import method_of, recorded, with_settings
from cards.console import say
from cards.errors import SettingError
from cards.integrations.preferences import By, Pairing, check_suffix, pair_kind
from cards.integrations.preferences_journal import opened
from cards.placement import Placement
from cards.study.prompts import read


@with_settings
@with_placement
def preferences(
    source: Annotated[str, typer.Argument(metavar="PROMPTS", help="A .jsonl, .json, .csv or text file, or tiny.")],
    out: Annotated[Path, typer.Argument(help="The pairs: .jsonl or .parquet.")],
    method: Annotated[str, typer.Option(help="Decoding method; `cards methods` lists them.")] = "best-of-n",
    by: Annotated[By | None, typer.Option(help="What a pair is (default: segments for methods that refuse some).")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Times that each prompt is answered.")] = 1,
    gap: Annotated[float, typer.Option(min=0, help="Rewards of a pair differ by more than this.")] = 0.0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first prompts.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Prompt i has this seed + i.")] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 128,
    stop: Annotated[list[str] | None, typer.Option(help="End answers before this text (repeatable; \\n: new line).")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue texts as they stand, without chat template.")] = False,
    model: Annotated[str, MODEL] = "tiny",
    reward: Annotated[str, REWARD] = "tiny",
    *,
    placed: dict[str, Any],
    **settings: str | None,
) -> None:
    """Answer PROMPTS and write pairs of a better and a worse continuation to OUT, for TRL's trainers.

    Pairs are segments with what was refused in their place (cards, stars, ...), or the best and the worst of whole answers.
    Run the same command again to go on where it stopped, however it stopped.
    """
    check_suffix(out)
    placement = Placement(**placed)
    chosen = method_of(method, settings)
    compared = pair_kind(method, by)
    if "reward" not in chosen.needed:
        raise SettingError(f"Method {method!r} scores no answers, so none is better than another: choose one with a reward.")
    records = read(source)[:limit]
    stops = [unescape(text) for text in stop or ()]
    made = {
        **{"model": model, "reward": reward, **recorded(chosen), **placement.record},
        **{"by": compared, "repeats": repeats, "gap": gap, "max_tokens": max_tokens, "stop": stops, "raw": raw},
    }
    with opened(out, made, records, seed) as collection:
        if collection.missing:
            decoder = load(model, reward, chosen, placement)
            options = {"max_tokens": max_tokens, "stop": stops}
            collection.collect(Pairing(decoder, compared, repeats, gap, seed, options), "raw" if raw else "auto")
        count, failed = collection.finish(), len(collection.missing)
    say(f"{count:,} pairs of {len(records) - failed:,} prompts are in {out}", "dim")
    if failed:
        say(f"{failed:,} prompts failed, of which the first are above; the same command tries them again", "red")
        raise typer.Exit(1)
