"""3D U-Net as MLPerf's PyTorch reference names it (input_block.conv1.0, downsample.0.conv1.0, ..., output.conv) into `models.unet3d`.

The same names have its checkpoints for inference (3dunet_kits19_pytorch_checkpoint.pth, whose last layer is
output.conv.0), and the ONNX file that was exported from them. A checkpoint holds more than the arrays, which lie
under `best_model_state_dict`. Source: mlcommons/inference, vision/medical_imaging/3d-unet-kits19/pytorch_checkpoint_SUT.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.weights.source import TorchSource, unwrapped
from mlperf_jax.workload import State
from models.unet3d import UNet3DConfig

_SIZE = (3, 3, 3)


def from_reference(tensors: Mapping[str, Tensor], config: UNet3DConfig) -> State:
    """Parameters, float32.

    Raises:
        UserError: an array is missing, has another shape, or belongs to another model.
    """
    source = TorchSource({_plain(name): array for name, array in tensors.items()})

    def block(name: str, features_in: int, features_out: int) -> dict[str, Any]:
        shape = (features_out,)
        return {
            "conv": source.conv(f"{name}.0", _SIZE, features_in, features_out),
            "norm": {
                "scale": source.take(f"{name}.1.weight", shape),
                "bias": source.take(f"{name}.1.bias", shape),
            },
        }

    def level(name: str, features_in: int, features_out: int) -> dict[str, Any]:
        return {
            "block1": block(f"{name}.conv1", features_in, features_out),
            "block2": block(f"{name}.conv2", features_out, features_out),
        }

    channels, last = config.channels, len(config.channels) - 1
    params: dict[str, Any] = {"first": level("input_block", config.channels_in, channels[0])}
    params["down"], params["up"] = {}, {}
    for i in range(1, last + 1):
        name = "bottleneck" if i == last else f"downsample.{i - 1}"
        params["down"][f"level{i}"] = level(name, channels[i - 1], channels[i])
        theirs = f"upsample.{last - i}"
        params["up"][f"level{i}"] = {
            "grow": source.conv(
                f"{theirs}.upsample_conv.0",
                (2, 2, 2),
                channels[i],
                channels[i - 1],
                bias=True,
                transposed=True,
            ),
            "level": level(theirs, 2 * channels[i - 1], channels[i - 1]),
        }
    params["head"] = source.conv("output.conv", (1, 1, 1), channels[0], config.num_classes, bias=True)
    source.refuse_left_over()
    return {"params": params, "model_state": {}}


def logged_names(config: UNet3DConfig) -> list[str]:
    """The names under which MLPerf's log has what was initialised, in the reference's order."""
    last = len(config.channels) - 1
    names = ["input"] + [f"down{i}" for i in range(last)] + [f"up{i}" for i in range(last)]
    found = []
    for name in names:
        found += [f"{name}_deconv"] if name.startswith("up") else []
        found += [f"{name}_block_{i}_{kind}" for i in range(2) for kind in ("conv", "instancenorm")]
    return [*found, "output_conv"]


def _plain(name: str) -> str:
    """A name without wrappers, and the last layer's as the training code has it."""
    return re.sub(r"^output\.conv\.0\.", "output.conv.", unwrapped(name))
