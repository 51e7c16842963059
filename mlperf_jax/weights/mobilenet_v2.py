"""MobileNet v2 as torchvision names it (features.0.0, features.1.conv.0.0, ...) into `models.maskrcnn2go.MobileTrunk`.

Its last convolution and its classifier are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.weights.source import TorchSource, unwrapped
from mlperf_jax.workload import State
from models.maskrcnn2go import MaskRCNN2GoConfig


def trunk(tensors: Mapping[str, Tensor], config: MaskRCNN2GoConfig) -> State:
    """The trunk's part of `params` and `model_state`, float32.

    Raises:
        UserError: an array is missing, has another shape, or belongs to another model.
    """
    source = TorchSource({unwrapped(name): array for name, array in tensors.items()})
    params: dict[str, Any] = {"stem": source.conv("features.0.0", 3, 3, config.stem)}
    stats: dict[str, Any] = {}
    params["norm"], stats["norm"] = source.norm("features.0.1", "features.0.0", config.stem)
    params["blocks"], stats["blocks"] = {}, {}
    features = config.stem
    for i, (expansion, features_out, _) in enumerate(config.blocks):
        inner = expansion * features
        name = f"features.{i + 1}.conv"
        first = 1 if expansion > 1 else 0
        convs = {
            "depthwise": (f"{name}.{first}.0", f"{name}.{first}.1", 3, 1, inner),
            "project": (f"{name}.{first + 1}", f"{name}.{first + 2}", 1, inner, features_out),
        }
        if expansion > 1:
            convs["expand"] = (f"{name}.0.0", f"{name}.0.1", 1, features, inner)
        block: dict[str, Any] = {}
        seen: dict[str, Any] = {}
        for part, (conv, norm, size, ins, outs) in convs.items():
            place = {"expand": "norm1", "depthwise": "norm2", "project": "norm3"}[part]
            block[part] = source.conv(conv, size, ins, outs)
            block[place], seen[place] = source.norm(norm, conv, outs)
        params["blocks"][i], stats["blocks"][i] = block, seen
        features = features_out
    return {"params": params, "model_state": stats}
