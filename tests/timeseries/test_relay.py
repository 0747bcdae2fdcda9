"""Streams that take over from one another: always one of the right length, wherever the pieces end."""

from __future__ import annotations

import numpy as np
import pytest

from apps.timeseries.relay import ONE_STREAM, Relay


@pytest.mark.parametrize(("context", "patch_len"), [(64, 8), (96, 16), (16, 16), (2048, 32), (40, 8), (3, 4)])
def test_what_serves_has_a_length_that_was_trained(context: int, patch_len: int) -> None:
    relay = Relay.of(context, patch_len)
    steps = np.arange(1, 5 * context)
    lengths = steps - relay.serving(steps)
    assert relay.stride % patch_len == 0
    assert lengths.max() <= max(context, 2 * patch_len)
    assert (lengths[steps > context] >= min(context // 2, relay.stride)).all()
    assert (lengths[: relay.stride] == steps[: relay.stride]).all()


@pytest.mark.parametrize("piece", [1, 5, 16, 63, 200])
def test_pieces_begin_the_streams_of_the_whole(piece: int) -> None:
    relay, streams = Relay.of(64, 8), set()
    for seen in range(0, 400, piece):
        now = seen + piece
        streams |= set(relay.begins(now, seen))
        streams = {begin for begin in streams if begin >= relay.serving(np.array([now]))[0]}
        assert streams == set(relay.begins(now))
        assert min(streams) == relay.serving(np.array([now]))[0]


def test_one_stream_of_any_length() -> None:
    assert Relay.of(None, 8) == ONE_STREAM
    assert ONE_STREAM.begins(10**6) == [0]
    assert ONE_STREAM.begins(20, 10) == []
    assert ONE_STREAM.serving(np.array([7, 10**6])).tolist() == [0, 0]
