"""What several tests of this room need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf


@pytest.fixture
def model_config(repository: Path) -> Callable[[str], dict[str, Any]]:
    """`model_config("tiny")`: the shipped config of that size as a plain dict."""

    def load(size: str) -> dict[str, Any]:
        loaded = OmegaConf.to_container(OmegaConf.load(repository / "configs" / "model" / "vision" / f"{size}.yaml"))
        assert isinstance(loaded, dict)
        return {str(key): value for key, value in loaded.items()}

    return load
