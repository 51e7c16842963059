"""The detector of MediaPipe's Objectron: published weights that are only served, on photographs that nobody annotated."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

import input_pipelines
from input_pipelines.image import objectron
from mlperf_jax.detection import boxes as box
from mlperf_jax.detection.grid_anchors import GridAnchorConfig, make_grid_anchors
from mlperf_jax.detection.suppression import Detections, Selection, select
from mlperf_jax.metrics.mean_average_precision import GroundTruth
from mlperf_jax.parallel.layout import Layout, constrain
from mlperf_jax.weights import ssd_mobilenet_v2 as weights
from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.workload import Batch, Evaluation, ServedWorkload, Spec, State
from mlperf_jax.workloads.object_detection import ANSWER, in_pixels
from models.ssd_mobilenet_v2 import SSDMobileNetV2, SSDMobileNetV2Config


class Objectron(ServedWorkload):
    """SSD-MobileNet v2 of 23 of Open Images's classes, as it is in npm's @mediapipe/objectron.

    How predictions become boxes is told by MediaPipe's own graph (mediapipe/modules/objectron/object_detection_oid_v4_cpu.pbtxt):
    anchors as TensorFlow's Object Detection API makes them, codes scaled by 10 and 5, sigmoids, class 0 left out, boxes that
    overlap by .4 suppressed. It takes of every anchor its best class only and lets boxes of any class suppress each other; here
    each class is judged by itself, as in the detectors beside it.

    No truth is known of the photographs. The quality is the mean average precision against what the same
    detector answered in TensorFlow Lite's interpreter: 1 where we answer as it does, and nothing about how good that is.
    """

    benchmark = "objectron"
    unit = "images"
    brings_weights = "object_detection_ssd_mobilenetv2_oidv4_fp16.tflite of npm's @mediapipe/objectron"

    @functools.cached_property
    def model_config(self) -> SSDMobileNetV2Config:
        return SSDMobileNetV2Config(**self.config.model.to_dict())

    @functools.cached_property
    def anchors(self) -> np.ndarray:
        """[A, 4] float64, as `make_grid_anchors` has them."""
        config = GridAnchorConfig(**self.config.anchors.to_dict())
        return make_grid_anchors(config, self.model_config.feature_sizes)

    # Data.

    @classmethod
    def prepare(cls, config: ConfigDict, data_dir: Path) -> None:
        input_pipelines.prepare(config.data.name, data_dir)

    @functools.cached_property
    def dataset(self) -> objectron.Photographs:
        options = self.config.data.to_dict() | {"synthetic": self.synthetic}
        found = input_pipelines.open_dataset(self.config.data.name, self.data_dir, options)
        return cast(objectron.Photographs, found)

    @functools.cached_property
    def recorded(self) -> GroundTruth:
        """What was answered once."""
        return GroundTruth(self.dataset.ground_truth)

    @property
    def data_description(self) -> str:
        return self.dataset.description

    @property
    def made_up_data(self) -> bool:
        return self.dataset.fake

    def check_data(self) -> None:
        _ = self.dataset  # Opening it reads its manifest and says what is missing.

    # The model.

    @functools.cached_property
    def _split(self) -> tuple[Any, Any]:
        """The graph, and structs of the parameters."""
        return nnx.split(
            nnx.eval_shape(lambda: SSDMobileNetV2(self.model_config, policy=self.policy, rngs=nnx.Rngs(0)))
        )

    def served_struct(self, layout: Layout) -> State:
        def struct(variable: nnx.Variable) -> jax.ShapeDtypeStruct:
            axes = variable.get_metadata().get("axes")
            where = layout.param_sharding(variable.shape, axes)
            return jax.ShapeDtypeStruct(variable.shape, variable.dtype, sharding=where)

        params = jax.tree.map(struct, self._split[1], is_leaf=lambda x: isinstance(x, nnx.Variable))
        return {"params": nnx.to_pure_dict(params)}

    @property
    def weights_file(self) -> Path:
        return objectron.detector_file(self.data_dir)

    def import_weights(self, tensors: Mapping[str, Tensor]) -> tuple[State, dict[str, Any]]:
        return weights.from_graph(tensors, self.model_config), {}

    # Serving.

    @property
    def metric(self) -> str:
        return "mAP against recorded answers"

    @property
    def num_samples(self) -> int:
        return self.dataset.num_eval

    def sample_spec(self) -> Spec:
        """The image, and the sample's own number, which the accuracy log wants in every answer."""
        return {"image": self.dataset.eval_spec["image"], "index": ((), np.dtype(np.int32))}

    def read_samples(self, indices: np.ndarray) -> Batch:
        return self.dataset.read_eval(indices, ("image",)) | {"index": np.asarray(indices, np.int32)}

    def raw(self, state: State, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Box codes [B, A, 4] and logits [B, A, classes] of images [B, S, S, 3] uint8."""
        wide = jnp.promote_types(self.policy.param_dtype, jnp.float32)
        mean, std = (jnp.asarray(self.config.data[k], wide) for k in ("mean", "std"))
        pixels = ((images.astype(wide) - mean) / std).astype(self.policy.compute_dtype)
        model = nnx.merge(self._split[0], state["params"])
        return model(constrain(pixels, "batch", "height", "width", None))

    def detect(self, codes: jax.Array, logits: jax.Array) -> Detections:
        """What predictions [B, A, 4] and [B, A, classes] detect, corners in parts of the image."""
        wide = jnp.promote_types(logits.dtype, jnp.float32)
        corners = box.decode(codes.astype(wide), jnp.asarray(self.anchors, wide))
        scores = jax.nn.sigmoid(logits.astype(wide)[..., 1:])
        found = select(corners, scores, Selection(**self.config.detection.to_dict()))
        return dataclasses.replace(found, corners=found.corners.clip(0, 1))

    def predict(self, state: State, inputs: Batch) -> jax.Array:
        """[B, K, 7] float32, columns `ANSWER`; a row of label 0 holds no detection."""
        rows = self.detect(*self.raw(state, inputs["image"])).rows().astype(jnp.float32)
        index = jnp.broadcast_to(inputs["index"][:, None, None].astype(jnp.float32), (*rows.shape[:2], 1))
        return jnp.concatenate([index, rows[..., jnp.array([1, 0, 3, 2, 4, 5])]], axis=-1)

    def answered_figures(self, indices: np.ndarray, answers: Sequence[bytes]) -> Evaluation:
        shape = (self.config.detection.detections, len(ANSWER))
        rows = np.stack([np.frombuffer(answer, "<f4").reshape(shape) for answer in answers])
        if not np.array_equal(rows[:, 0, 0], indices):
            raise ValueError("answers name other samples than those that were asked")
        truth = self.dataset.read_eval(indices, ("image_id", "size"))
        labels = range(1 + len(objectron.CLASSES))
        found = in_pixels(rows[..., [2, 1, 4, 3, 5, 6]], truth["image_id"], truth["size"], labels)
        figures = self.recorded.judge(found, truth["image_id"].tolist())
        return figures | {"quality": figures["mAP"]}
