"""Rimer: RWKV-7 over the patches of a series, with quantiles of many steps from every patch.

After the idea of BlackGoose Rimer (arXiv 2503.06121), RWKV-7 as a forecaster with a state of constant size; not after
its code, whose recurrence sees one token. Direct quantiles of many steps from a recurrent state as in TiRex
(arXiv 2505.23719).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from apps.timeseries import paths
from apps.timeseries.buffers import pick, push, take
from apps.timeseries.changes import drift_path, recent_changes
from apps.timeseries.dlinear import DLinear
from apps.timeseries.embedding import PatchEmbedding, Tokens, movement
from apps.timeseries.forecaster import Forecaster, Output
from apps.timeseries.head import LEVELS
from apps.timeseries.linear_path import RidgePath
from apps.timeseries.naive import SeasonalNaive
from apps.timeseries.normalise import NORMS, Running, running, window_statistics
from apps.timeseries.paths import History, Paths, fill_forward, naive_paths
from apps.timeseries.published import PublishedRimer
from apps.timeseries.readout import Readout
from apps.timeseries.ridge import Ridge
from apps.timeseries.series import Series
from apps.timeseries.stream import NEVER, Stream
from apps.timeseries.window import WindowForecaster, require_horizon
from core.backbone import Backbone, matching_hidden_dim
from core.errors import UserError, did_you_mean
from core.layers import Context
from core.state import State

_TOKENS_AT_A_TIME = 2048  # on a CPU: at width 128 an activation takes a MiB, about what its cache holds


class RimerModel(WindowForecaster):
    """A causal backbone over patches; every patch predicts the steps after the last one it knows.

    At least `output_len` of them lie beyond the patch. Counted from what is known, a step ahead means the same to the
    readout in a full patch and in one that has just begun. Readers of a window, whose patches end where the series
    does, predict the patch itself as well: what was hidden of it is one more thing to learn from.

    Args:
        patch_len: P, steps per token.
        output_len: O, steps ahead in one go, a multiple of P; longer horizons are fed empty tokens.
        dim, num_layers, head_dim, drop_path: of the backbone.
        mixer: "rwkv7", "attention" (the Timer-style twin) or any registered token mixer.
        hidden_dim: of the channel mixers; None: 4 dim, or what gives another mixer the same number of parameters.
        quantiles: levels of the head; () for a point forecaster, trained by squared or absolute error.
        norm: "causal", statistics of all steps so far, part of a stream's state; "window", of the whole window
            (RevIN), which a stream reads again for every forecast; "none".
        norm_halflife: steps after which a value counts half in the causal statistics; None: all count the same.
        arcsinh: squash normalised values, so that outliers and short histories do no harm.
        num_periods: S, season lengths that a series may name.
        max_period: the longest season whose values are kept for the naive paths; longer ones are phases alone.
        max_position: patches that have a position code of their own; 0 for none.
        n_futr, n_hist, n_static: numbers of covariates.
        dropout: of the embedding and of the features before the head.
        input_len: window of norm="window" and of the ridge path, a multiple of P.
        ridge: what becomes of a closed-form linear forecast from the last input_len steps: "path" (or True), it is
            one more path; "mean", outside training forecasts lie halfway between it and the network's. It is fitted by
            :meth:`fit_closed_form` before training.
        mix: of the paths: "convex" or "affine", which has the drift as one more path and residuals in units of recent
            changes, see :class:`apps.timeseries.readout.Readout`.

    Raises:
        ValueError: sizes that do not fit, unknown names.
    """

    def __init__(
        self,
        *,
        patch_len: int = 16,
        output_len: int = 96,
        dim: int = 128,
        num_layers: int = 4,
        head_dim: int = 32,
        mixer: str | Sequence[str] = "rwkv7",
        hidden_dim: int | None = None,
        quantiles: Sequence[float] = LEVELS,
        norm: str = "causal",
        norm_halflife: float | None = None,
        arcsinh: bool = True,
        num_periods: int = 2,
        max_period: int = 512,
        max_position: int = 64,
        n_futr: int = 0,
        n_hist: int = 0,
        n_static: int = 0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        input_len: int | None = None,
        ridge: bool | str = False,
        mix: str = "convex",
    ) -> None:
        super().__init__()
        _check_sizes(patch_len, output_len, norm, input_len, ridge)
        self.patch_len, self.output_len, self.input_len = patch_len, output_len, input_len
        self.norm, self.norm_halflife, self.arcsinh = norm, norm_halflife, arcsinh
        self.n_futr, self.n_hist, self.n_static, self.max_period = n_futr, n_hist, n_static, max_period
        self.num_periods = num_periods
        self.part_filled = norm != "window"
        self.hidden_size = dim
        self.reach = max(paths.LAGS * max_period if num_periods else 0, (input_len or 0) if ridge else 0)
        self.kept_steps = self.reach + patch_len
        self.slots = patch_len + output_len  # an empty patch's token has output_len left behind that patch
        shape: dict[str, Any] = {"dim": dim, "num_layers": num_layers, "head_dim": head_dim}
        self.hidden_dim = hidden_dim or matching_hidden_dim(**shape, mixer=mixer)
        self.embed = PatchEmbedding(
            patch_len, dim, num_periods=num_periods, max_position=max_position,
            n_futr=n_futr, n_hist=n_hist, n_static=n_static,
        )  # fmt: skip
        self.dropout = nn.Dropout(dropout)
        self.backbone = Backbone(**shape, mixer=mixer, hidden_dim=self.hidden_dim, drop_path=drop_path)
        self.ridge = RidgePath(input_len, output_len) if ridge and input_len else None
        self.mix = mix
        self.halfway = ridge == "mean"
        along = self.ridge is not None and not self.halfway
        count = 1 + paths.count(num_periods) + along + (mix == "affine")
        self.readout = Readout(
            dim, self.slots, count, quantiles, n_futr=n_futr, dropout=dropout,
            mix=mix, num_changes=1 + num_periods,
        )  # fmt: skip
        self.quantiles = self.readout.head.levels

    def fit_closed_form(self, rows: Iterable[Tensor], valid: Iterable[Tensor] | None = None) -> None:
        """Fit the ridge path, if there is one, to training series (N,) or (C, N) without gaps.

        `valid` chooses its penalty; None: the training series' last tenth.
        """
        if self.ridge is not None:
            self.ridge.fit(rows, valid)

    def forward(self, series: Series, *, last: bool = False) -> Output:
        """Series of N steps, N a multiple of P -> predictions of all N / P tokens, each from the steps up to its end.

        last=True: of the last token alone.

        Raises:
            ValueError: N is no multiple of P, or covariates are missing.
        """
        batch, steps = series.values.shape
        if steps % self.patch_len or not steps:
            raise ValueError(f"the series have {steps} steps; a multiple of patch_len {self.patch_len} was expected")
        self._require(series.futr, series.hist, series.static)
        count = steps // self.patch_len
        values, visible = (x.unflatten(1, (count, self.patch_len)) for x in (series.values, series.observed))
        begin = torch.zeros(batch, dtype=torch.int64, device=values.device)
        past = Running.start(batch, values.device)
        stats = self._statistics(values, visible, past)
        tokens = self._tokens(values, visible, stats, past, begin, series)
        if series.futr is not None:
            tokens = tokens._replace(futr=series.futr[:, :steps].unflatten(1, (count, self.patch_len)))
        if series.hist is not None:
            tokens = tokens._replace(hist=series.hist.unflatten(1, (count, self.patch_len)))
        x, _ = self.backbone(self.dropout(self.embed(tokens)), ctx=Context(keep_state=False), last=last)
        filled = fill_forward(series.values, series.observed, series.values[:, 0])
        seen = series.observed
        first = torch.where(seen.any(1), seen.long().argmax(1), NEVER)
        latest = torch.where(seen, torch.arange(steps, device=seen.device), -1).cummax(1).values
        end = latest[:, self.patch_len - 1 :: self.patch_len] + 1
        patch = torch.arange(0, steps, self.patch_len, device=seen.device).expand(batch, -1)
        if last:
            end, patch, stats = end[:, -1:], patch[:, -1:], Running(*(part[:, -1:] for part in stats))
        base = torch.maximum(end, patch) if self.part_filled else patch
        futr = None
        if series.futr is not None:
            futr = self._futr(series.futr, base, patch)
        low = torch.maximum(first[:, None], patch + self.patch_len - self.reach)
        return self._read(x, History(filled, begin, low), end, base, series.periods, stats, futr)

    def _last_token(self, window: Series) -> Output:
        return self(window, last=True)

    def start(self, periods: Tensor, start: Tensor, static: Tensor | None = None) -> Stream:
        """Streams that have seen nothing; see :meth:`Forecaster.start`."""
        if static is None and self.n_static:
            raise ValueError(f"this model was trained with {self.n_static} static covariates; give them as well")
        return super().start(periods, start, static)

    @torch.no_grad()
    def update(
        self,
        stream: Stream,
        values: Tensor,
        observed: Tensor,
        lengths: Tensor | None = None,
        futr: Tensor | None = None,
        hist: Tensor | None = None,
    ) -> Stream:
        """The streams after n further steps; see :meth:`Forecaster.update`."""
        self._require(futr, hist, stream.static)
        pushed = push(stream, values, observed, lengths, futr, hist)
        if self.norm == "window":
            return pushed
        size = self.patch_len
        begun = stream.seen % size
        whole = (begun + (values.shape[1] if lengths is None else lengths)) // size
        fewest, count = (int(end) for end in whole.aminmax())
        if count == 0:
            return pushed
        level = fewest == count
        begin = size - begun  # the half-filled patch is the end of the buffers

        def patches(old: Tensor, new: Tensor) -> Tensor:
            return take(torch.cat((old[:, -size:], new), dim=1), begin, count * size).unflatten(1, (count, size))

        visible, mask = patches(stream.observed, observed), None
        if not level:
            mask = torch.arange(count, device=values.device) < whole[:, None]
            visible = visible & mask[..., None]
        cut = patches(stream.values, values)
        stats = running(cut, visible, stream.stats, self.norm_halflife)
        shown = self._statistics(cut, visible, stream.stats) if self.norm == "none" else stats
        tokens = self._tokens(cut, visible, shown, stream.stats, stream.seen // size, stream)
        if futr is not None and stream.futr is not None:
            tokens = tokens._replace(futr=patches(stream.futr, futr))
        if hist is not None and stream.hist is not None:
            tokens = tokens._replace(hist=patches(stream.hist, hist))
        x, state = self._carry(tokens, stream.backbone, mask)
        if level:
            stats = Running(*(part[:, -1] for part in stats))
            return pushed._replace(stats=stats, hidden=x[:, -1].to(stream.hidden), backbone=state)
        some, at = whole > 0, (whole - 1).clamp(min=0)

        def newest(all_: Tensor, before: Tensor) -> Tensor:
            return torch.where(some, all_.gather(1, at[:, None]).squeeze(1), before)

        hidden = torch.where(some[:, None], take(x, at, 1).squeeze(1), stream.hidden)
        return pushed._replace(
            stats=Running(*map(newest, stats, stream.stats)), hidden=hidden.to(stream.hidden), backbone=state
        )

    def _carry(self, tokens: Tokens, state: State | None, mask: Tensor | None) -> tuple[Tensor, State]:
        """The backbone over T further tokens of streams; without a mask the last token's features (B, 1, C) alone.

        Some rows at a time, so that what lies between two layers stays in a CPU's cache.
        """
        batch, count = tokens.z.shape[:2]
        rows = max(1, _TOKENS_AT_A_TIME // count) if tokens.z.device.type == "cpu" else batch

        def carry(at: slice) -> tuple[Tensor, State]:
            before = None if state is None else state.map(lambda x: x[at])
            ctx = Context(mask=None if mask is None else mask[at])
            return self.backbone(self.embed(tokens.rows(at)), before, ctx, last=mask is None)

        if batch <= rows or count == 1:
            return carry(slice(None))
        parts = [carry(slice(i, i + rows)) for i in range(0, batch, rows)]
        pieces = zip(*((x for _, x in after.named_tensors()) for _, after in parts), strict=True)
        return torch.cat([x for x, _ in parts]), parts[0][1].map(lambda _: torch.cat(next(pieces)))

    @torch.no_grad()
    def forecast(self, stream: Stream, h: int, futr: Tensor | None = None) -> Tensor:
        """The next h steps; see :meth:`Forecaster.forecast`."""
        require_horizon(h)
        if self.n_futr and (futr is None or futr.shape[1] < h):
            raise ValueError(f"this model was trained with covariates known ahead; give them for all {h} steps")
        if self.norm == "window":
            return super().forecast(stream, h, futr)
        size, ahead = self.patch_len, self.output_len
        begun = stream.seen % size
        offset = torch.where(begun > 0, begun, size)  # of the first step to predict, in the first token's slots
        further = max(0, -(-(h - int((size + ahead - offset).min())) // ahead))
        hidden, stats = self._last_tokens(stream, begun, further, futr)
        jump = ahead * torch.arange(1 + further, device=begun.device)
        patch = (stream.seen - offset)[:, None] + jump
        end = (stream.latest + 1)[:, None].expand(patch.shape)
        low = torch.maximum(stream.first, stream.seen - self.reach)[:, None].expand(patch.shape)
        base = torch.maximum(end, patch)
        history = History(stream.values, stream.seen - stream.values.shape[1], low)
        known = None
        if futr is not None and stream.futr is not None:
            both = torch.cat((stream.futr[:, -size:], futr[:, :h]), dim=1)
            first = (stream.seen - size)[:, None]
            known = self._futr(both, base - first, patch - first)
        out = self._read(hidden, history, end, base, stream.periods, stats, known)
        found = self.denormalise(out.z, out.loc[..., None], out.scale[..., None])
        step = offset[:, None] + torch.arange(h, device=begun.device)
        token = ((step - size) // ahead).clamp(min=0)
        flat = token * self.slots + step - (base - patch[:, :1]).gather(1, token)
        found = found.flatten(1, 2).gather(1, flat[..., None].expand(-1, -1, found.shape[-1]))
        return found.masked_fill((stream.latest < 0)[:, None, None], torch.nan)

    def _last_tokens(self, stream: Stream, begun: Tensor, further: int, futr: Tensor | None) -> tuple[Tensor, Running]:
        """Features (B, 1 + further, C) of the tokens that forecast: the last patch, whole or not, and empty ones.

        And the statistics of all that has been seen, (B, 1 + further).
        """
        size, each = self.patch_len, self.output_len // self.patch_len
        count = 1 + further * each
        partial = begun > 0
        there = torch.arange(size, device=begun.device) < begun[:, None]
        visible = take(stream.observed, stream.values.shape[1] - begun, size) & there
        values = take(stream.values, stream.values.shape[1] - begun, size)
        stats = running(values[:, None], visible[:, None], stream.stats, self.norm_halflife)
        stats = self._shown(Running(*(part.expand(-1, count) for part in stats)))
        answered = Running(*(part[:, : 1 + further] for part in stats))
        drop = 0 if bool(partial.any()) else 1  # where every last patch is whole, there are but empty ones to read
        if further == 0 and drop:
            return stream.hidden[:, None], answered
        stats = Running(*(part[:, drop:] for part in stats))
        values = torch.cat((values[:, None], values.new_zeros(len(values), count - 1, size)), dim=1)[:, drop:]
        visible = torch.cat((visible[:, None], visible.new_zeros(len(values), count - 1, size)), dim=1)[:, drop:]
        index = stream.seen // size - (~partial).long() + drop
        tokens = self._tokens(values, visible, stats, stream.stats, index, stream)
        if futr is not None and stream.futr is not None:
            both = torch.cat((stream.futr[:, -size:], futr), dim=1)
            begin = torch.where(partial, size - begun, drop * size)
            tokens = tokens._replace(futr=take(both, begin, (count - drop) * size).unflatten(1, (-1, size)))
        if stream.hist is not None:
            hist = take(stream.hist[:, -size:], size - begun, size) * there[..., None]
            rest = hist.new_zeros(len(hist), count - 1, *hist.shape[1:])
            tokens = tokens._replace(hist=torch.cat((hist[:, None], rest), dim=1)[:, drop:])
        mask = None
        if not drop and not bool(partial.all()):
            mask = torch.ones(len(begun), count, dtype=torch.bool, device=begun.device)
            mask[:, 0] = partial
        x, _ = self.backbone(self.embed(tokens), stream.backbone, Context(mask=mask))
        first = stream.hidden if drop else torch.where(partial[:, None], x[:, 0], stream.hidden)
        return torch.cat((first[:, None], x[:, each - drop :: each]), dim=1), answered

    def _statistics(self, values: Tensor, visible: Tensor, past: Running) -> Running:
        """What patches (B, T, P) are normalised by, (B, T)."""
        if self.norm == "window":
            return window_statistics(values, visible)
        return self._shown(running(values, visible, past, self.norm_halflife))

    def _shown(self, stats: Running) -> Running:
        return Running(*(torch.zeros_like(part) for part in stats)) if self.norm == "none" else stats

    def _tokens(
        self, values: Tensor, visible: Tensor, stats: Running, past: Running, index: Tensor, of: Series | Stream
    ) -> Tokens:
        """Patches (B, T, P) from token number `index` (B,) on, without covariates of their own."""
        loc, scale = stats.loc_scale()
        before = Running(*(torch.cat((b[:, None], s[:, :-1]), dim=1) for b, s in zip(past, stats, strict=True)))
        known = (before.weight > 0) & (self.norm == "causal")
        shift, stretch = movement(loc, scale, *before.loc_scale(), known)
        z = self.normalise(values, loc[..., None], scale[..., None]).masked_fill(~visible, 0.0)
        index = index[:, None] + torch.arange(values.shape[1], device=values.device)
        time = of.start[:, None] + index * self.patch_len
        return Tokens(z, visible, shift, stretch, index, time, of.periods, static=of.static)

    def _read(
        self,
        x: Tensor,
        history: History,
        end: Tensor,
        base: Tensor,
        periods: Tensor,
        stats: Running,
        futr: Tensor | None,
    ) -> Output:
        """The predictions of tokens with features x (B, T, C), whose slot 0 is step `base` and who know up to `end`."""
        slots = self.slots
        kept = periods.masked_fill(periods > self.max_period, 0)
        naive = naive_paths(history, end, base, slots, kept)
        linear = None if self.ridge is None else self.ridge(history, end, base, slots, naive.values[..., 0])
        if linear is not None and not self.halfway:
            naive = Paths(*(torch.cat(parts, dim=-1) for parts in zip(naive, linear, strict=True)))
        changes = None
        loc, scale = (part[..., None] for part in stats.loc_scale())
        if self.mix == "affine":
            drift = drift_path(history, end, base, slots)
            naive = Paths(*(torch.cat(parts, dim=-1) for parts in zip(naive, drift, strict=True)))
            changes = recent_changes(history, end, kept, lambda y: self.normalise(y, loc, scale))
        z = self.normalise(naive.values, loc[..., None], scale[..., None])
        found = self.readout(x, z, naive.available, futr, changes)
        if linear is not None and self.halfway and not self.training:
            middle = found[..., self.readout.head.middle, None]
            away = self.normalise(linear.values, loc[..., None], scale[..., None]) - middle
            found = found + 0.5 * away.where(linear.available[:, :, None], 0.0)
        return Output(found, loc, scale, base)

    def _futr(self, futr: Tensor, base: Tensor, patch: Tensor) -> Tensor:
        """Covariates known ahead (B, N, F) of every slot, (B, T, slots, F); base and patch as rows of them.

        What lies further than `output_len` steps behind a token's patch stays out: a stream may not know it yet.
        """
        step = base[..., None] + torch.arange(self.slots, device=base.device)
        step = torch.minimum(step, patch[..., None] + self.slots - 1)
        return pick(futr, step.flatten(1)).unflatten(1, step.shape[1:])

    def _require(self, futr: Tensor | None, hist: Tensor | None, static: Tensor | None) -> None:
        for given, expected, name in (
            (futr, self.n_futr, "known ahead (futr)"), (hist, self.n_hist, "of the past (hist)"),
            (static, self.n_static, "that do not change (static)"),
        ):  # fmt: skip
            width = 0 if given is None else given.shape[-1]
            if width != expected:
                raise ValueError(f"{width} covariates {name} were given, the model has {expected}")


MODELS: dict[str, Callable[..., Forecaster]] = {
    "rimer": RimerModel,
    "ridge": Ridge,
    "dlinear": DLinear,
    "seasonal_naive": SeasonalNaive,
    "published": PublishedRimer,
}
"""What a config may name; a file's content builds models through this table and nothing else."""


def build_model(model: dict[str, Any]) -> Forecaster:
    """The forecaster of a config: ``name`` (of :data:`MODELS`) and that class's options.

    Raises:
        UserError: an unknown name or option, with the nearest known one; sizes that do not fit.
    """
    options = dict(model)
    name = options.pop("name", "rimer")
    if name not in MODELS:
        raise UserError(f"There is no forecaster '{name}'{did_you_mean(name, list(MODELS))}")
    known = list(inspect.signature(MODELS[name]).parameters)
    for key in options:
        if key not in known:
            raise UserError(f"The forecaster '{name}' has no option '{key}'{did_you_mean(key, known)}")
    try:
        return MODELS[name](**options)
    except ValueError as error:
        raise UserError(f"The forecaster '{name}' cannot be built: {error}") from error


def _check_sizes(patch_len: int, output_len: int, norm: str, input_len: int | None, ridge: bool | str) -> None:
    if patch_len < 1 or output_len < 1 or output_len % patch_len:
        raise ValueError(f"output_len must be a multiple of patch_len, got {output_len} and {patch_len}")
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}; expected one of {', '.join(NORMS)}")
    if ridge not in (False, True, "path", "mean"):
        raise ValueError(f"ridge is {ridge!r}; expected false, path or mean")
    if (norm == "window" or ridge) and not input_len:
        what = "norm=window" if norm == "window" else f"ridge={ridge}"
        raise ValueError(f"{what} needs input_len, a number of steps")
    if input_len is not None and (input_len < 1 or input_len % patch_len):
        raise ValueError(f"input_len must be a multiple of patch_len, got {input_len} and {patch_len}")
