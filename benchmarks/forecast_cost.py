"""What following a series costs: RWKV-7's constant state, attention's key-value cache, and reading everything again.

    python -m benchmarks.forecast_cost

Rimer and its attention twin (same parameters, same everything but the token mixer) follow series of 512 to 65,536
steps: a new step, a new patch, a forecast, reading the whole history, the memory of it. neuralforecast's PatchTST,
which cannot be carried on, reads the history again. Then forecasts from a cold start, in series per second.

Before a model is timed, what it forecasts after reading a series in pieces is held to one pass over the whole series.
"""

from __future__ import annotations

import argparse
import functools
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from apps.timeseries.forecaster import Forecaster
from benchmarks import forecast_following as contestants
from benchmarks.forecast_following import AHEAD, MIXERS, OURS, PATCH, PEER, PIECE, TWIN, Size, series
from benchmarks.report import WRONG, Report, Table, Timing, side_by_side, versions

BOUND = 1e-5  # of normalised quantiles, largest difference over their standard deviation
PEER_MOST = 16384  # steps; PatchTST keeps all attention scores of three layers
FLAT, FASTER, RATE = 1.2, 10.0, 200.0  # the bars
PUBLISHED = "TiRex 35M, compiled (published; another machine: an H100 host's CPU)"
PUBLISHED_RATES = {(1, 32): 27.0, (16, 32): 66.0, (256, 32): 92.0, (256, 128): 23.0}
"""Series per second by batch and horizon, context 2048: the CSV files of NX-AI/tirex's benchmark."""

Calls = dict[tuple[str, int], Callable[[], object]]


TIMES = {"patch": 1, "step": PATCH, "forecast": 1}
HEADINGS = {"patch": "new patch", "step": "new step", "forecast": f"forecast of {AHEAD}"}


# -------------------------------------------------------------------------------------------------------- measuring


Timings = Mapping[tuple[str, int], Timing]


def timed(calls: Calls, turns: int, least: float, times: int = 1) -> dict[tuple[str, int], Timing]:
    """Side by side; `times` is how often a call does the thing."""
    found = side_by_side({f"{name}/{at}": call for (name, at), call in calls.items()}, turns, least)
    return {key: Timing(tuple(t / times for t in found[f"{key[0]}/{key[1]}"].turns)) for key in calls}


def compared(timings: Timings, name: str, at: int) -> tuple[Timing | str | None, float | None]:
    """A cell, and how many times ours."""
    if (name, at) not in timings:
        return (None if name == PEER else WRONG), None
    ours = timings.get((OURS, at))
    return timings[name, at], timings[name, at].median / ours.median if ours else None


@torch.inference_mode()
def guard(models: Mapping[str, Forecaster], contexts: Sequence[int]) -> dict[tuple[str, int], float]:
    """The error of every model at every context."""
    return {(name, n): contestants.error(model, series(1, n)) for n in contexts for name, model in models.items()}


@torch.inference_mode()
def stream_table(
    models: Mapping[str, Forecaster], right: Sequence[tuple[str, int]], contexts: Sequence[int], batch: int, turns: int
) -> tuple[Table, Mapping[str, Timings]]:
    """Streams that go on, `batch` at a time."""
    rows = [0] * batch  # the cost does not depend on the values
    streams = {(name, n): contestants.read(models[name], series(1, n)).select(rows) for name, n in right}
    calls = {key: contestants.following(models[key[0]], stream) for key, stream in streams.items()}
    found = {
        op: timed({key: getattr(call, op) for key, call in calls.items()}, turns, 0.02, times)
        for op, times in TIMES.items()
    }
    table = Table(
        f"{batch} stream{'s'[: batch != 1]}: time of a call that carries {'it' if batch == 1 else 'all of them'} on",
        ["history", "model", *(x for op in TIMES for x in (HEADINGS[op], "x ours")), "state of a stream, KiB"],
    )
    for n in contexts:
        for name in models:
            cells = [x for op in TIMES for x in compared(found[op], name, n)]
            size = streams[name, n].size / batch / 1024 if (name, n) in streams else None
            table.add(f"{n:,}", name, *cells, size)
    return table, found


@torch.inference_mode()
def history_table(
    models: Mapping[str, Forecaster], right: Sequence[tuple[str, int]], errors: Mapping[tuple[str, int], float],
    contexts: Sequence[int], options: argparse.Namespace,
) -> tuple[Table, Timings]:  # fmt: skip
    """From nothing to a forecast: what a model without a state pays for every forecast."""
    cold = contestants.cold
    calls: Calls = {(name, n): functools.partial(cold, models[name], series(1, n), AHEAD) for name, n in right}
    if options.peer:
        for n in contexts:
            if n <= PEER_MOST:
                calls[PEER, n] = functools.partial(contestants.cold_peer, contestants.peer(n, AHEAD), series(1, n))
    found = timed(calls, options.long_turns, 0.0)
    most: dict[tuple[str, int], int] = {}
    if options.memory:
        for name in dict.fromkeys(name for name, _ in calls):
            reached = [n for one, n in calls if one == name]
            peaks = contestants.peaks(name, reached, Size(options.dim, options.layers))
            most |= {(name, n): peak for n, peak in zip(reached, peaks, strict=True)}
    table = Table(
        f"Reading the whole history and a forecast of {AHEAD}, one series",
        ["history", "tokens", "model", "time", "x ours", "peak memory, MiB", "error"],
    )
    for n in contexts:
        for name in [*models, *([PEER] if options.peer and n <= PEER_MOST else [])]:
            peak = most[name, n] / 2**20 if (name, n) in most else None
            table.add(f"{n:,}", n // PATCH, name, *compared(found, name, n), peak, errors.get((name, n)))
    return table, found


@torch.inference_mode()
def rate_table(models: Mapping[str, Forecaster], options: argparse.Namespace) -> tuple[Table, dict[str, float]]:
    """Forecasts from a cold start in series per second, and those of ours by "batch/h"."""
    table = Table(
        f"Throughput from a cold start, context {options.context}",
        ["batch", "h", "model", "time of a batch", "series/s", "x ours"],
    )
    ours: dict[str, float] = {}
    for batch in options.batches:
        given = series(batch, options.context)
        for h in options.horizons:
            calls: Calls = {
                (name, 0): functools.partial(contestants.cold, model, given, h) for name, model in models.items()
            }
            if options.peer:
                calls[PEER, 0] = functools.partial(contestants.cold_peer, contestants.peer(options.context, h), given)
            found = timed(calls, options.long_turns, 0.1)
            for name, _ in calls:
                cell, times = compared(found, name, 0)
                table.add(batch, h, name, cell, batch / found[name, 0].median, 1 / times if times else None)
            if (OURS, 0) in found:
                ours[f"{batch}/{h}"] = batch / found[OURS, 0].median
            if rate := PUBLISHED_RATES.get((batch, h)):
                table.add(batch, h, PUBLISHED, None, rate, None)
    return table, ours


# ------------------------------------------------------------------------------------------------------------ bars


def bars(
    found: Mapping[int, Mapping[str, Timings]], whole: Timings, rates: Mapping[str, float], options: argparse.Namespace
) -> Table:
    """What was promised, what was measured."""
    table = Table("Bars", ["bar", "wanted", "measured", "met"])

    def add(bar: str, wanted: str, measured: float, met: bool) -> None:
        table.add(bar, wanted, measured, "yes" if met else "no")

    low, high = max(1024, min(options.contexts)), max(options.contexts)
    middle = 16384
    for batch, by_op in found.items():
        who = f"{batch} stream{'s'[: batch != 1]}"
        for op in TIMES:
            ours, twin = ({n: t.median for (name, n), t in by_op[op].items() if name == one} for one in (OURS, TWIN))
            if low in ours and high in ours:
                value = ours[high] / ours[low]
                add(f"{who}, {HEADINGS[op]}: {high:,} steps over {low:,}", f"<= {FLAT}", value, value <= FLAT)
            if middle in ours and middle in twin and op != "forecast":
                value = twin[middle] / ours[middle]
                add(
                    f"{who}, {HEADINGS[op]}: twin over ours, {middle:,} steps", f">= {FASTER:g}", value, value >= FASTER
                )
    one = found.get(1, {})
    ours = [by_op[OURS, middle].median for op, by_op in one.items() if op != "step" and (OURS, middle) in by_op]
    if ours and (TWIN, middle) in whole:
        value = whole[TWIN, middle].median / sum(ours)
        bar = f"1 stream, new patch and forecast: twin that reads again over ours, {middle:,} steps"
        add(bar, f">= {FASTER:g}", value, value >= FASTER)
    for key, value in rates.items():
        batch, h = key.split("/")
        if batch == "256":
            add(f"series/s at batch 256, h {h}", f">= {RATE:g}", value, value >= RATE)
    return table


# ---------------------------------------------------------------------------------------------------- command line


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give positive numbers, comma-separated, such as 512,1024")
    return found


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m benchmarks.forecast_cost", description="What following a series costs.")
    contexts = [512, 1024, 4096, 16384, 65536]
    p.add_argument("--contexts", type=_numbers, default=contexts, help="steps of history, multiples of 16")
    p.add_argument("--streams", type=_numbers, default=[1, 16, 64], help="streams that are carried on together")
    p.add_argument("--batches", type=_numbers, default=[1, 16, 256], help="series read together, for the throughput")
    p.add_argument("--horizons", type=_numbers, default=[32, 128], help="for the throughput")
    p.add_argument("--context", type=int, default=2048, help="steps of history, for the throughput")
    p.add_argument("--dim", type=int, default=128, help="width, a multiple of 32")
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("--turns", type=int, default=7, help="measured turns of each call")
    p.add_argument("--long-turns", type=int, default=3, help="the same, of whole histories and of the throughput")
    p.add_argument("--threads", type=int, default=None, help="PyTorch threads; default: PyTorch's own choice")
    p.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True, help="time neuralforecast's PatchTST")
    p.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="also measure peak memory")
    p.add_argument("--write", action="store_true", help="write docs/benchmarks/forecast-cost-<machine>.json and .md")
    p.add_argument("--output", type=Path, default=None, help="write JSON here and Markdown beside it")
    p.add_argument("--peaks", nargs="+", metavar="NAME DIM LAYERS CONTEXT", help=argparse.SUPPRESS)
    return p


def check(p: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse sizes that do not fit, in a sentence."""
    for name in ("layers", "turns", "long_turns"):
        if getattr(options, name) < 1:
            p.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    if options.dim < 32 or options.dim % 32:
        p.error(f"--dim must be a multiple of 32 (a head's size), got {options.dim}")
    for steps in [*options.contexts, options.context]:
        if steps < PATCH or steps % PATCH:
            p.error(f"a history must be a multiple of {PATCH} steps (a patch), got {steps}")


def notes(models: Mapping[str, Forecaster], why_no_peer: str | None) -> list[str]:
    """What the reader must know."""
    sizes = ", ".join(f"{name}: {sum(p.numel() for p in model.parameters()):,}" for name, model in models.items())
    found = [
        f"Load average of the last minute when it began: {os.getloadavg()[0]:.1f}.",
        f"Parameters: {sizes}. Random weights, float32, no gradients, patches of {PATCH} steps, {AHEAD} steps ahead at "
        "once, 21 quantiles. Median (least to most) over turns taken side by side in one process.",
        f"New patch: {PATCH} steps in one call, at the end of a patch. New step: the mean over the {PATCH} calls that "
        "fill one. Forecast: from a half-filled patch, which both models read as a token of its own.",
        "The twin's cache is a value as every state of Greylag's, so that each token copies it; a cache written in "
        "place would save that, and still read all of it.",
        "PatchTST: sizes of neuralforecast's defaults but for stride 16 (as many tokens as ours; the default is 8), "
        "one point per step, the network alone without frames and Trainer; up to "
        f"{PEER_MOST:,} steps, as it keeps all attention scores. It cannot be carried on: a new step costs it all.",
        "Peak memory: growth while the history is read and forecast, beyond model and series, on one thread in a "
        "process of its own.",
        f"Error: largest difference between the normalised quantiles after reading {PIECE} steps at a time and those "
        f"of one pass over all, over their standard deviation; above {BOUND:g} there is no speed.",
        "TiRex's figures are those of NX-AI/tirex's own benchmark files, on another machine.",
    ]
    return found if why_no_peer is None else [*found, f"No PatchTST: {why_no_peer}."]


def measure(report: Report, models: Mapping[str, Forecaster], options: argparse.Namespace) -> None:
    """Fill the report."""
    errors = guard(models, options.contexts)
    right = [key for key, off in errors.items() if off <= BOUND]
    found: dict[int, Mapping[str, Timings]] = {}
    for batch in options.streams:
        print(f"measuring {batch} streams ...", file=sys.stderr, flush=True)
        table, found[batch] = stream_table(models, right, options.contexts, batch, options.turns)
        report.tables.append(table)
    print("measuring whole histories ...", file=sys.stderr, flush=True)
    table, whole = history_table(models, right, errors, options.contexts, options)
    report.tables.append(table)
    print("measuring throughput ...", file=sys.stderr, flush=True)
    always = {name: m for name, m in models.items() if all((name, n) in right for n in options.contexts)}
    table, rates = rate_table(always, options)
    report.tables.append(table)
    report.tables.insert(0, bars(found, whole, rates, options))


def main(arguments: list[str] | None = None) -> int:
    """Print the tables, write them where asked; 1 if any model's forecasts were off, 2 for a wrong argument."""
    given = sys.argv[1:] if arguments is None else arguments
    p = parser()
    options = p.parse_args(given)
    if options.peaks:
        name, (dim, layers, *contexts) = options.peaks[0], map(int, options.peaks[1:])
        print(contestants.own_peaks(name, contexts, Size(dim, layers)))
        return 0
    check(p, options)
    if options.threads:
        torch.set_num_threads(options.threads)
    why = contestants.peer_missing() if options.peer else "left out by --no-peer"
    options.peer = why is None
    models = {name: contestants.build(name, Size(options.dim, options.layers)) for name in MIXERS}
    report = Report(
        "Following a series: what an update, a forecast and a cold start cost",
        shlex.join(["python", "-m", "benchmarks.forecast_cost", *given]),
        {"dim": options.dim, "layers": options.layers, "patch": PATCH, "turns": options.turns},
        versions("torch", "neuralforecast"),
        notes=notes(models, why),
    )
    measure(report, models, options)
    print(report.markdown())
    if options.write or options.output:
        print("written:", *report.write(options.output or report.default_path("forecast-cost")))
    return int(any(WRONG in row for table in report.tables for row in table.rows))


if __name__ == "__main__":
    sys.exit(main())
