"""Synthetic series for pre-training, drawn as they are needed and never twice."""

from apps.timeseries.synthetic.recipe import Drawn, draw

__all__ = ["Drawn", "draw"]
