"""Tables of the long-horizon study: errors by model, the bars, and other people's published rows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.forecast_training import ALONE, HORIZONS, MEAN, Errors, Forecasts
from benchmarks.report import Table

BARS = {
    "ETTh1": {"96": 0.3646, "192": 0.3975, "336": 0.4216, "720": 0.4240},
    "ETTm1": {"96": 0.3084, "192": 0.3398, "336": 0.3687, "720": 0.4196},
}
"""MSE of an earlier closed-form ridge, L = 672: what was to be beaten on every row."""
PUBLISHED_ROWS = {
    ("PatchTST/64, L=512", "arXiv 2211.14730, second-hand"): {
        "ETTh1": (".370/.400", ".413/.429", ".422/.440", ".447/.468"),
        "ETTm1": (".293/.346", ".333/.370", ".369/.392", ".416/.420"),
    },
    ("DLinear, L=336", "arXiv 2205.13504, second-hand"): {
        "ETTh1": (".375/.399", ".405/.416", ".439/.443", ".472/.490"),
        "ETTm1": (".299/.343", ".335/.365", ".369/.386", ".425/.421"),
    },
    ("NLinear, L=336", "arXiv 2205.13504, second-hand"): {
        "ETTh1": (".374/.394", ".408/.415", ".429/.427", ".440/.453"),
        "ETTm1": (".306/.348", ".349/.375", ".375/.388", ".433/.422"),
    },
}


def mean_and_spread(values: Sequence[float]) -> str:
    """ "0.3645 ± 0.0012"; of a single value no spread."""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"


def _cell(found: Sequence[tuple[float, float]]) -> str:
    return f"{mean_and_spread([mse for mse, _ in found])} / {statistics.fmean(mae for _, mae in found):.4f}"


def errors_table(
    name: str,
    untrained: Mapping[str, Errors],
    done: Mapping[str, Sequence[Forecasts]],
) -> Table:
    """Test MSE ± spread / MAE of a set by model and horizon; models without any training are left out."""
    table = Table(
        f"{name}: MSE / MAE on the test, mean and standard deviation over seeds",
        ["forecaster", "parameters", "seeds", "steps", *map(str, HORIZONS)],
    )
    for model, found in untrained.items():
        table.add(model, None, None, None, *(_cell([found[ALONE][str(h)]]) for h in HORIZONS))
    for model, outcomes in done.items():
        for kind in (ALONE, MEAN) if outcomes else ():
            one = outcomes[0]
            label = model if kind == ALONE else f"{model}, {MEAN}"
            facts = one.parameters, len(outcomes), one.steps
            table.add(label, *facts, *(_cell([x.test_errors[kind][str(h)] for x in outcomes]) for h in HORIZONS))
    return table


def bars_table(
    found: Mapping[str, tuple[Mapping[str, Errors], Mapping[str, Sequence[Forecasts]]]], ours: str, twin: str
) -> Table:
    """By set and horizon: the bar, our ridge, RWKV-7 and its twin, with the margins."""
    table = Table(
        "Test MSE against the bars",
        ["set", "horizon", "bar", "ridge here", f"{ours}", f"{ours}, {MEAN}", f"{twin}, {MEAN}", "bar - ours, %"],
    )
    for name, (untrained, done) in found.items():
        for h in map(str, HORIZONS):
            ridge, bar = untrained["ridge"][ALONE][h][0], BARS[name][h]
            cells = []
            for model, kind in ((ours, ALONE), (ours, MEAN), (twin, MEAN)):
                values = [x.test_errors[kind][h][0] for x in done.get(model, ())]
                cells.append(statistics.fmean(values) if values else None)
            margin = None if cells[1] is None else f"{100 * (bar - cells[1]) / bar:+.1f}"
            shown = (None if x is None else f"{x:.4f}" for x in cells)
            table.add(name, int(h), f"{bar:.4f}", f"{ridge:.4f}", *shown, margin)
    return table


def published_table() -> Table:
    """Rows of others' papers, as they published them."""
    table = Table(
        "Published by others, not measured here (MSE/MAE; loaders that dropped the last test batch)",
        ["forecaster", "source", "set", *map(str, HORIZONS)],
    )
    for (name, source), sets in PUBLISHED_ROWS.items():
        for dataset, row in sets.items():
            table.add(name, source, dataset, *row)
    return table
