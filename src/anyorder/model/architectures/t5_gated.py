"""T5 1.1 and its descendants (FLAN-T5): T5 with gated MLPs. `T5` reads their config.json."""

from __future__ import annotations

from typing import ClassVar

from anyorder.model.architecture import Architecture
from anyorder.model.architectures.t5 import T5
from anyorder.model.naming import NameMap

_UP = "layers.{layer}.mlp.up"


class T5Gated(Architecture):
    """Two linear layers into the MLP, the first of them through the activation."""

    names: ClassVar[NameMap] = {
        **T5.names,
        **{
            f"{side}layers.{{layer}}.mlp.{part}": f"{T5.names[side + _UP]}_{number}"
            for side in ("", "encoder.")
            for number, part in enumerate(("gate", "up"))
        },
    }
    ignored: ClassVar[tuple[str, ...]] = T5.ignored
