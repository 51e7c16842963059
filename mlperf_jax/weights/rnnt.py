"""RNN-T as MLPerf's references name it, into `models.rnnt`.

Of the training reference (mlcommons/training, rnn_speech_recognition/pytorch/rnnt/model.py): encoder.pre_rnn.lstm.
weight_ih_l0, ..., prediction.embed.weight, joint_enc.weight, joint_pred.weight, joint_net.2.weight. MLPerf Inference's
checkpoint (mlcommons/inference, v0.7 to v6.0, speech_recognition/rnnt) is of characters, has a prediction network of
320, and a joint network whose first layer, joint_net.0, reads encoder and prediction network one after the other; and
the window and the filters of its features, which are computed here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.weights.source import TorchSource, unwrapped
from mlperf_jax.workload import State
from models.rnnt import RNNTConfig

_CLASSES, _PREDICTION_WIDTH = 29, 320
CHARACTERS = {
    "model.classes": _CLASSES,
    "model.prediction_width": _PREDICTION_WIDTH,
    "data.symbols": "characters",
    "data.max_eval_seconds": 15.0,
    "decode.most": 1000,
    "decode.most_in_frame": 30,
    "inference.published_quality": 1 - 0.925477,
}
"""The config that goes with MLPerf Inference's checkpoint: its accuracy of 0.925477 is of 2,513 utterances of dev-clean,
those of up to 15 seconds."""

_WRAPPED = "state_dict."


def from_state_dict(tensors: Mapping[str, Tensor], config: RNNTConfig) -> tuple[State, dict[str, Any]]:
    """Parameters from PyTorch's names, float32, and the config that goes with them.

    Raises:
        UserError: an array is missing, has another shape, or belongs to another model.
    """
    found = {unwrapped(name.removeprefix(_WRAPPED)): array for name, array in tensors.items()}
    source = TorchSource(
        {name: array for name, array in found.items() if not name.startswith("audio_preprocessor.")}
    )
    of_characters = "joint_net.0.weight" in found
    if of_characters:
        config = dataclasses.replace(config, classes=_CLASSES, prediction_width=_PREDICTION_WIDTH)
    width, predicted, joint = config.encoder_width, config.prediction_width, config.joint_width

    def layers(name: str, features_in: int, features: int, count: int) -> dict[int, Any]:
        return {
            n: source.lstm(f"{name}.lstm", features if n else features_in, features, layer=n)
            for n in range(count)
        }

    params: dict[str, Any] = {
        "before": layers("encoder.pre_rnn", config.features, width, config.layers_before),
        "after": layers("encoder.post_rnn", config.stack * width, width, config.layers_after),
        "embedding": source.take("prediction.embed.weight", (config.classes - 1, predicted)),
        "prediction": layers("prediction.dec_rnn", predicted, predicted, config.prediction_layers),
    }
    if of_characters:
        kernel = source.take("joint_net.0.weight", (joint, width + predicted))
        # One layer over both, encoder first.
        of_encoder, of_prediction = (
            np.asarray(kernel)[:, part].T for part in (slice(width), slice(width, None))
        )
        params |= {
            "of_encoder": {"kernel": of_encoder, "bias": source.take("joint_net.0.bias", (joint,))},
            "of_prediction": {"kernel": of_prediction, "bias": np.zeros(joint, np.float32)},
            "classes": source.dense("joint_net.3", joint, config.classes),
        }
    else:
        params |= {
            "of_encoder": source.dense("joint_enc", width, joint),
            "of_prediction": source.dense("joint_pred", predicted, joint),
            "classes": source.dense("joint_net.2", joint, config.classes),
        }
    source.refuse_left_over()
    return {"params": params, "model_state": {}}, dict(CHARACTERS) if of_characters else {}
