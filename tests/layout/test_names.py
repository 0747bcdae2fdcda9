"""`core` and `apps` are plain names: that they are ours, and what they offer, is held here."""

from __future__ import annotations

from pathlib import Path

import apps
import core
import core.checkpoint
import core.layers
import core.wkv


def test_core_and_apps_are_this_repositorys(repository: Path) -> None:
    for package in (core, apps):
        found = Path(str(package.__file__)).resolve()
        assert found.is_relative_to(repository), (
            f"`import {package.__name__}` finds {found}, not {repository / package.__name__}: another package of that "
            "name is installed before ours. Uninstall it, or use the environment that `make test` makes."
        )


def test_public_names() -> None:
    """Users write these; a name goes only with a line in CHANGELOG.md."""
    public = {
        "core": """Attention Backbone Block ChannelMix Context RWKV7LM State TimeMix TokenShift Walk
            available_backends channel_mixers count_parameters matching_hidden_dim token_mixers use_backend wkv7""",
        "core.wkv": "Walk available_backends use_backend wkv7 wkv7_reference",
        "core.checkpoint": """load_blinkdl load_fla load_pretrained load_rwkv_cpp save_blinkdl save_fla
            save_pretrained""",
    }
    offered = {"core": core.__all__, "core.wkv": core.wkv.__all__, "core.checkpoint": core.checkpoint.__all__}
    assert {module: set(names) for module, names in offered.items()} == {
        module: set(names.split()) for module, names in public.items()
    }
    for name in core.__all__:
        assert getattr(core, name).__module__.startswith("core.")


def test_registered_mixers() -> None:
    """Configurations name these."""
    assert {"rwkv7", "attention", "bi_wkv"} <= set(core.token_mixers)
    assert {"rwkv7", "mlp", "rwkv4"} <= set(core.channel_mixers)
