"""What every Lightning task of Greylag shares: data loading, optimisation, checkpoints, run folders."""

from __future__ import annotations
