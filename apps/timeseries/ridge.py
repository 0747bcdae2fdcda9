"""Closed-form linear forecasting: one ridge matrix for every series, from exact normal equations.

A forecast is ``windows @ weight`` with weight (L, O), whose columns each add up to 1: raising a window by a constant
raises its forecast by the same, so no intercept is needed. Such a matrix comes from windows centred on one of their
own values or on their mean, an (L, O) ridge on those, and the centre added back.

On ETT this is a strong opponent: ahead of PatchTST's published errors on ETTh1 (672 steps in), in closed form.

Windows at stride 1 overlap, so their second moments are a sliding sum: entry (i+1, j+1) is entry (i, j) less its
first product plus one more. That makes the whole (L + O)-square matrix in O(N (L + O)) instead of O(N (L + O)^2),
without forming a window. Centring, fitting and the validation error of every penalty are functions of it alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from apps.timeseries.one_window import OneWindowForecaster
from core.errors import UserError

CENTRES = ("last", "mean")
PENALTIES = tuple(10.0 ** (k / 4) for k in range(-24, 1))
"""Penalties tried, as multiples of a centred input's mean second moment; 1 halves the average direction."""
HELD_OUT = 0.1
"""Share of each series, its end, that chooses the penalty where no validation series are given."""


class Moments(NamedTuple):
    """Second moments of windows of L + O steps."""

    matrix: Tensor  # (L + O, L + O) float64: sums of products over all windows
    windows: int

    def __add__(self, other: Moments) -> Moments:  # type: ignore[override]
        return Moments(self.matrix + other.matrix, self.windows + other.windows)

    def centred(self, centre: str, input_len: int) -> Tensor:
        """The moments of the same windows less their centre, which is a linear function of the input."""
        c = self.matrix.new_zeros(len(self.matrix))
        if centre == "last":
            c[input_len - 1] = 1.0
        else:
            c[:input_len] = 1 / input_len
        product = self.matrix @ c
        return self.matrix - product[:, None] - product[None, :] + c @ product


def moments(series: Tensor, steps: int) -> Moments:
    """Second moments of all windows of `steps` consecutive values, stride 1, of rows (C, N) of finite numbers.

    Exact up to float64's rounding; rows shorter than `steps` give none.
    """
    x = series.to(torch.float64)
    if x.ndim != 2:
        raise ValueError(f"series must be (C, N), got {tuple(x.shape)}")
    count = x.shape[1] - steps + 1
    matrix = x.new_zeros(steps, steps)
    if count < 1:
        return Moments(matrix, 0)
    size = 1 << (x.shape[1] + steps - 1).bit_length()  # no wrap-around
    spectrum = torch.fft.rfft(x, size) * torch.fft.rfft(x[:, :count], size).conj()
    row = torch.fft.irfft(spectrum.sum(0), size)[:steps]  # products at lag j, summed over windows
    leaving, entering = x[:, : steps - 1], x[:, count:]
    change = entering.T @ entering - leaving.T @ leaving
    matrix[0] = row
    for i in range(1, steps):
        matrix[i, i:] = matrix[i - 1, i - 1 : -1] + change[i - 1, i - 1 :]
    matrix = matrix.triu() + matrix.triu(1).T
    return Moments(matrix, count * x.shape[0])


class RidgeFit(NamedTuple):
    """A fitted matrix and how it was chosen."""

    weight: Tensor  # (L, O) float64, columns add up to 1
    centre: str
    penalty: float
    score: float  # mean squared error per step on the validation windows

    def predict(self, windows: Tensor) -> Tensor:
        """(..., L) -> (..., O), see :func:`apply`."""
        return apply(self.weight, windows)


def apply(weight: Tensor, windows: Tensor) -> Tensor:
    """windows (..., L) -> forecasts (..., O) in the windows' units and dtype.

    The last value is taken out first: the result is the same because columns add up to 1, and float32 then rounds
    differences rather than levels.
    """
    last = windows[..., -1:]
    return (windows - last) @ weight.to(windows.dtype) + last


def fit_ridge(
    series: Iterable[Tensor],
    input_len: int,
    output_len: int,
    *,
    valid: Iterable[Tensor] | None = None,
    scale: bool = False,
    centres: Sequence[str] = CENTRES,
    penalties: Sequence[float] = PENALTIES,
) -> RidgeFit:
    """The ridge matrix of L = `input_len` steps to O = `output_len`, for all series together.

    Args:
        series: tensors (N,) or (C, N) of finite numbers; those too short for a window are repeated at their first
            value to the left.
        valid: series whose windows choose centre and penalty. None: the last tenth of `series` chooses, and takes
            part in the matrix then.
        scale: divide each row by its standard deviation, for series of different units; ratios of errors count then.
        centres, penalties: what is tried, see :func:`solve`.

    Raises:
        UserError: there is no series.
    """
    train = valid_moments = None
    for rows in series:
        rows = _prepared(rows, input_len + output_len, scale)
        cut = rows.shape[1]
        if valid is None:
            cut = max(input_len + output_len, round(cut * (1 - HELD_OUT)))
            held = rows[:, max(0, cut - input_len) :]
            valid_moments = _sum(valid_moments, moments(held, input_len + output_len))
        train = _sum(train, moments(rows[:, :cut], input_len + output_len))
    for rows in valid or ():
        found = moments(_prepared(rows, input_len + output_len, scale), input_len + output_len)
        valid_moments = _sum(valid_moments, found)
    if train is None:
        raise UserError("There is no series to fit the closed-form ridge to.")
    fit = solve(train, valid_moments or train, input_len, centres, penalties)
    if valid is None and valid_moments is not None and valid_moments.windows:
        again = solve(train + valid_moments, train, input_len, (fit.centre,), (fit.penalty,))
        fit = again._replace(score=fit.score)
    return fit


def _prepared(rows: Tensor, steps: int, scale: bool) -> Tensor:
    rows = torch.atleast_2d(rows).to(torch.float64)
    if rows.shape[1] < steps:
        rows = torch.cat((rows[:, :1].expand(-1, steps - rows.shape[1]), rows), dim=1)
    if scale:
        std = rows.std(1, correction=0, keepdim=True)
        rows = (rows - rows[:, -1:]) / torch.where(std > 0, std, torch.ones_like(std))
    return rows


def _sum(one: Moments | None, other: Moments) -> Moments:
    return other if one is None else one + other


def solve(
    train: Moments,
    valid: Moments,
    input_len: int,
    centres: Sequence[str] = CENTRES,
    penalties: Sequence[float] = PENALTIES,
) -> RidgeFit:
    """The ridge matrix of the training windows, with the centre and penalty that err least on validation windows.

    Args:
        train, valid: moments of windows of L + O steps.
        input_len: L.
        centres: of "last" and "mean".
        penalties: multiples of the mean second moment of a centred input.

    Raises:
        UserError: there are no training windows.
    """
    if not train.windows:
        raise UserError("No series is long enough for one training window of the closed-form ridge.")
    found = [_best(train, valid, input_len, centre, penalties) for centre in centres]
    return min(found, key=lambda fit: fit.score)


def _best(train: Moments, valid: Moments, input_len: int, centre: str, penalties: Sequence[float]) -> RidgeFit:
    xx, xy, _ = _blocks(train, centre, input_len)
    val_xx, val_xy, val_yy = _blocks(valid if valid.windows else train, centre, input_len)
    values, vectors = torch.linalg.eigh(xx)
    values = values.clamp(min=0)
    unit = float(values.mean()) or 1.0
    turned = vectors.T @ xy
    val_xx, val_xy = vectors.T @ val_xx @ vectors, vectors.T @ val_xy
    best, score, chosen = turned, float("inf"), float("nan")
    for penalty in penalties:
        w = turned / (values + penalty * unit)[:, None]
        error = float(val_yy.trace() - 2 * (w * val_xy).sum() + (w * (val_xx @ w)).sum()) / val_xy.shape[1]
        if error < score:
            best, score, chosen = w, error, penalty
    weight = vectors @ best
    share = weight.new_zeros(input_len)
    if centre == "last":
        share[-1] = 1.0
    else:
        share[:] = 1 / input_len
    return RidgeFit(weight + share[:, None] * (1 - weight.sum(0)), centre, chosen, score)


def _blocks(found: Moments, centre: str, input_len: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean moments per window of centred inputs, inputs with targets, targets."""
    matrix = found.centred(centre, input_len) / found.windows
    return matrix[:input_len, :input_len], matrix[:input_len, input_len:], matrix[input_len:, input_len:]


class Ridge(OneWindowForecaster):
    """The closed-form ridge as a forecaster: its matrix is a buffer, nothing is trained.

    Args:
        input_len, output_len: L and O.
        scale: fit to series divided by their standard deviation, for series of different units.

    Before :meth:`fit_closed_form` it repeats the last value.
    """

    weight: Tensor

    def __init__(self, input_len: int = 512, output_len: int = 96, scale: bool = True) -> None:
        super().__init__(input_len, output_len)
        self.scale = scale
        self.register_buffer("weight", torch.zeros(input_len, output_len))

    def fit_closed_form(self, rows: Iterable[Tensor], valid: Iterable[Tensor] | None = None) -> None:
        """Fit to training series (N,) or (C, N) without gaps; see :func:`fit_ridge`."""
        found = fit_ridge(rows, *self.weight.shape, valid=valid, scale=self.scale)
        self.weight.copy_(found.weight)

    def ahead(self, windows: Tensor, periods: Tensor) -> Tensor:
        """Windows (B, L) -> (B, O)."""
        del periods
        return apply(self.weight, windows)
