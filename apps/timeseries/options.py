"""What the estimator's arguments mean for model and windows: sizes that fit each other and the data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from apps.timeseries.covariates import Covariates
from apps.timeseries.frame import Table
from apps.timeseries.model import MODELS
from core.errors import UserError, did_you_mean

LARGEST_PATCH = 16
LONGEST_INPUT = 2048
LONGEST_SEASON = 1024
"""The model keeps two of the longest season up to this; longer ones are phases alone."""
NETWORK = ("num_layers", "mixer", "norm", "dropout")
"""Arguments that the model takes by the same name."""


class Sizes(NamedTuple):
    """Steps of a window and of its parts."""

    context: int
    patch_len: int
    output_len: int


def require_whole(name: str, value: Any, least: int = 1) -> int:
    """The value; UserError unless it is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise UserError(f"{name} is {value!r}; a whole number of at least {least} was expected.")
    return int(value)


def choose_sizes(h: int, input_size: int | None, patch_len: int | None, seasons: Sequence[int], longest: int) -> Sizes:
    """Sizes that fit each other.

    Args:
        h: horizon.
        input_size: steps of history; None: three horizons or two seasons, whichever is longer; -1: all there are.
        patch_len: steps per token; None: a power of two that gives the history at least four tokens, 16 at most.
        seasons: in steps.
        longest: steps of the longest training series.
    """
    if input_size is None or input_size == -1:
        wanted = LONGEST_INPUT if input_size else max(3 * h, 2 * max(seasons, default=1), LARGEST_PATCH)
        input_size = max(1, min(longest - h, wanted, LONGEST_INPUT))
    require_whole("input_size", input_size)
    if patch_len is None:
        patch_len = 1 << max(0, min(LARGEST_PATCH, input_size // 4).bit_length() - 1)
    require_whole("patch_len", patch_len)
    return Sizes(_up(input_size, patch_len), patch_len, _up(h, patch_len))


def model_options(
    arguments: Mapping[str, Any],
    further: Mapping[str, Any],
    sizes: Sizes,
    h: int,
    covariates: Covariates,
    seasons: Sequence[int],
) -> dict[str, Any]:
    """Options of :func:`apps.timeseries.model.build_model`.

    Args:
        arguments: of the estimator.
        further: the user's own, for the model; each outranks what follows from the rest.
        sizes: of the window.
        h: horizon.
        covariates: of the series.
        seasons: in steps.

    Raises:
        UserError: no such model or option, with the nearest; covariates that the model cannot take.
    """
    name = arguments["model"]
    if name not in MODELS:
        raise UserError(f"There is no model '{name}'{did_you_mean(name, list(MODELS))}")
    known = list(inspect.signature(MODELS[name]).parameters)
    for key in further:
        if key not in known:
            raise UserError(f"Neither Rimer nor its model '{name}' has an option '{key}'{did_you_mean(key, known)}")
    counts = {"n_futr": len(covariates.futr), "n_hist": len(covariates.hist), "n_static": len(covariates.static)}
    for key, count in counts.items():
        if count and key not in known:
            raise UserError(f"The model '{name}' takes no covariates; leave out the exog lists, or take model='rimer'.")
    windowed = "patch_len" not in known or arguments["norm"] == "window" or further.get("ridge", False)
    chosen = {
        **{key: arguments[key] for key in NETWORK},
        **counts,
        "dim": arguments["hidden_size"],
        "head_dim": min(32, arguments["hidden_size"]),
        "quantiles": list(arguments["quantiles"]) if arguments["loss"] in (None, "quantile") else [],
        "patch_len": sizes.patch_len,
        "output_len": sizes.output_len if "patch_len" in known else h,
        "input_len": sizes.context if windowed else None,
        "num_periods": len(seasons),
        "max_period": max((s for s in seasons if s <= LONGEST_SEASON), default=1),
    }
    return {"name": name, **{key: value for key, value in chosen.items() if key in known}, **further}


def training_borders(table: Table, h: int, val_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the training, validation and test part of each series end, (B,) int64; there is no test part.

    Series too short for a validation part are for training alone.

    Raises:
        UserError: a size that makes no sense, or too few values to learn from.
    """
    most = max((int((~np.isnan(values)).sum()) for values in table.values), default=0)
    if most < 2:
        raise UserError(f"No series of df has two values or more (the most is {most}); there is nothing to learn from.")
    require_whole("val_size", val_size, 0)
    if 0 < val_size < h:
        raise UserError(f"val_size is {val_size}; 0, or at least one horizon of {h} steps, was expected.")
    lengths = torch.from_numpy(table.lengths)
    rest = torch.where(lengths - val_size > 1, lengths - val_size, lengths)
    if val_size and bool((rest == lengths).all()):
        raise UserError(
            f"val_size is {val_size}, but the longest series has {int(lengths.max())} steps; take a smaller one, or 0."
        )
    return rest, lengths, lengths


def _up(steps: int, of: int) -> int:
    """The least multiple of `of` that is not below `steps`."""
    return -(-steps // of) * of
