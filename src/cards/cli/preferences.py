"""`cards preferences`: decode a file of prompts into a preference data set."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cards.cli.models import load_decoder
from cards.cli.options import METHOD, METHOD_FLAGS, MODEL, PROMPT_SOURCE, REWARD, with_options, with_placement
from cards.cli.respond import ResponseOptions
from cards.cli.settings import method_of, recorded, with_settings
from cards.console import say
from cards.errors import SettingError, public_name
from cards.integrations.preferences import By, Pairing, check_suffix, pair_kind
from cards.integrations.preferences_journal import opened
from cards.placement import Placement, reward_for
from cards.prompts import FormOptions
from cards.study.prompts import read, sample


@with_settings
@with_options(ResponseOptions, "options", leave_out=("deadline",))
@with_options(FormOptions, "prompting")
@with_placement
def preferences(
    prompts: Annotated[str, typer.Option(help=PROMPT_SOURCE)],
    out: Annotated[Path, typer.Option(help="Output file with the pairs: .jsonl or .parquet.")],
    method: Annotated[str, typer.Option(*METHOD_FLAGS, help=METHOD)] = "best-of-n",
    by: Annotated[
        By | None,
        typer.Option(
            help="Kind of pairs: of segments, or of complete responses.", show_default="segments if the method rejects some"
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Number of times to decode each prompt.")] = 1,
    gap: Annotated[float, typer.Option(min=0, help="Keep pairs whose rewards differ by more than this.")] = 0.0,
    limit: Annotated[int | None, typer.Option(min=1, help="Number of prompts to sample; all if omitted.")] = None,
    model: Annotated[str, MODEL] = "tiny",
    reward: Annotated[str | None, REWARD] = None,
    *,
    options: ResponseOptions,
    prompting: FormOptions,
    placement: Placement,
    settings: dict[str, str],
) -> None:
    """Decode prompts and write pairs of a better and a worse continuation, for the trainers of TRL.

    A pair is an accepted and a rejected segment (cards, stars, ...), or the best and the worst of several complete responses.
    To resume after any interruption, run the same command again.
    """
    check_suffix(out)
    chosen = method_of(method, settings)
    compared = pair_kind(method, by)
    if "reward" not in chosen.needed:
        raise SettingError(f"Method {method!r} does not score responses, so it gives no pairs: choose a method with a reward.")
    reward = reward_for(model, reward, [chosen])
    records = sample(read(prompts), limit, options.seed)
    limits = {"max_tokens": options.max_tokens, "stop": list(options.stop)}
    header = {
        **{"model": public_name(model), "reward": public_name(reward), **recorded(chosen), **placement.record},
        **{"by": compared, "repeats": repeats, "gap": gap, **limits, **asdict(prompting)},
    }
    with opened(out, header, records, options.seed) as collection:
        if collection.missing:
            decoder = load_decoder(model, reward, chosen, placement)
            pairing = Pairing(decoder, compared, repeats, gap, options.seed, limits)
            collection.collect(pairing, prompting)
        count, failed = collection.finish(), len(collection.missing)
    say(f"{count:,} pairs of {len(records) - failed:,} prompts are in {out}", "dim")
    if failed:
        say(f"{failed:,} prompts failed; the first errors are above. Run the same command again to retry them.", "red")
        raise typer.Exit(1)
