"""Object detection: a picture in, boxes with classes out; quality is COCO's mean average precision."""

from __future__ import annotations

import abc
import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from input_pipelines.image.detection import DetectionDataset
from mlperf_jax.detection import drawing
from mlperf_jax.detection.anchors import AnchorConfig, make_anchors
from mlperf_jax.detection.suppression import Detections, Selection, detect
from mlperf_jax.detection.training import multibox_loss
from mlperf_jax.errors import UserError
from mlperf_jax.metrics.mean_average_precision import GroundTruth
from mlperf_jax.supervised import Loss, mean_of
from mlperf_jax.training import schedules
from mlperf_jax.training.engine import Engine
from mlperf_jax.weights import ssd as weights
from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.workload import Batch, Evaluation, Spec, State
from mlperf_jax.workloads.backbones import BackboneWorkload
from models.ssd import SSD, SSDConfig, flops_per_image

M = TypeVar("M")
D = TypeVar("D", bound=DetectionDataset)

ANSWER = ("index", "top", "left", "bottom", "right", "score", "label")
"""Columns of an answer, as MLPerf Inference's accuracy log has them (tools/accuracy-coco.py)."""


_DRAWN_SCORE = 0.3  # what is less certain is not drawn


Predicted = Any
"""Numbers at every anchor, [B, A, ...]: an array, or a list of one for each level of a pyramid."""


class Detector(Protocol):
    """A network that predicts at every anchor."""

    def __call__(self, images: jax.Array, *, train: bool) -> tuple[Predicted, Predicted]:
        """Normalised images [B, S, S, 3] to box codes [B, A, 4] and logits [B, A, classes]."""


class JudgedDetection(BackboneWorkload[M, D]):
    """What is detected in images, judged by pycocotools in a thread while training goes on."""

    background = True
    """Whether the first of the model's classes is the background's."""

    @functools.cached_property
    def scorer(self) -> ThreadPoolExecutor:
        """The thread."""
        return ThreadPoolExecutor(1, thread_name_prefix="mean average precision")

    @functools.cached_property
    def ground_truth(self) -> GroundTruth:
        return GroundTruth(self.dataset.ground_truth)

    def check_data(self) -> None:
        """Also: that the model has room for the classes."""
        super().check_data()
        classes = max(self.dataset.num_classes, 2) - (not self.background)
        if classes > self.config.model.num_classes:
            raise UserError(
                f"The data has {classes} classes{' with the background' if self.background else ''} and the model "
                f"{self.config.model.num_classes}; use --config.model.num_classes={classes}."
            )

    def true_boxes(self, image_id: int, height: int, width: int) -> list[drawing.LabelledBox]:
        """What is to be seen in an image of that size, for people."""
        boxes = self.ground_truth.boxes(image_id)
        return [
            ((x / width, y / height, (x + w) / width, (y + h) / height), self.ground_truth.name(category))
            for (x, y, w, h), category in boxes
        ]

    def found_boxes(self, rows: np.ndarray) -> list[drawing.LabelledBox]:
        """Detections [n, 6], as `Detections.rows` has them, for people."""
        return [
            (tuple(corners), f"{self.ground_truth.name(self.dataset.category_ids[int(label)])} {score:.2f}")
            for *corners, score, label in rows[is_drawn(rows)].tolist()
        ]


def is_drawn(rows: np.ndarray) -> np.ndarray:
    """Which of detections [n, 6] are certain enough to be shown, [n] bool."""
    return (rows[:, 5] > 0) & (rows[:, 4] >= _DRAWN_SCORE)


class ObjectDetection(JudgedDetection[Detector, DetectionDataset]):
    """A detector on uint8 images [B, S, S, 3] with boxes [B, M, 4] (corners) and labels [B, M].

    A family of detectors brings its model, what the model's predictions cost in training (anchors, matcher and
    loss), what they mean as boxes (score, decoding and suppression), and its learning rate.
    Detections of the evaluation set are gathered on the device. pycocotools scores them in a thread
    while training goes on.
    """

    # What a family supplies, besides its model.

    @abc.abstractmethod
    def box_loss(self, codes: Predicted, logits: Predicted, boxes: jax.Array, labels: jax.Array) -> Loss:
        """The loss of predictions [B, A, 4] and [B, A, classes] against boxes [B, M, 4] and labels [B, M], 0 padding."""

    @abc.abstractmethod
    def detect(self, codes: Predicted, logits: Predicted) -> Detections:
        """What the predictions [B, A, 4] and [B, A, classes] detect, `config.detection.detections` an image."""

    # The phases, from that.

    def loss(self, model: Detector, batch: Batch, key: jax.Array) -> Loss:
        codes, logits = model(self.normalise(batch["image"]), train=True)
        return self.box_loss(codes, logits, batch["boxes"], batch["labels"])

    def detections(self, model: Detector, images: jax.Array) -> jax.Array:
        """[B, S, S, 3] uint8 to [B, K, 6]: corners, score, label, as `Detections.rows` has them."""
        return self.detect(*model(self.normalise(images), train=False)).rows()

    @property
    def metric(self) -> str:
        return {"mAP": "mAP", "mAP_50": "mAP at IoU .5"}[self.config.figure]

    def eval_totals(self) -> Any:
        """Room for the detections of every evaluation image; `seen` counts the rows that are filled."""
        size = self.config.eval_batch_size
        rows = -(-self.num_eval // size) * size
        return {
            "rows": jnp.zeros((rows, self.config.detection.detections, 6), jnp.float32),
            "image_id": jnp.zeros(rows, jnp.int32),
            "size": jnp.zeros((rows, 2), jnp.int32),
            "mask": jnp.zeros(rows, jnp.float32),
            "seen": jnp.zeros((), jnp.int32),
        }

    def eval_update(self, totals: Any, model: Detector, batch: Batch) -> Any:
        found = self.detections(model, batch["image"]).astype(jnp.float32)
        seen = totals["seen"]
        new = {"rows": found} | {name: batch[name] for name in ("image_id", "size", "mask")}
        filled = {
            name: lax.dynamic_update_slice_in_dim(totals[name], new[name], seen, axis=0) for name in new
        }
        return filled | {"seen": seen + len(found)}

    def eval_result(self, totals: Any) -> Future[Evaluation]:
        real = totals["mask"] > 0
        return self.scorer.submit(
            self._score, totals["rows"][real], totals["image_id"][real], totals["size"][real]
        )

    def _score(self, rows: np.ndarray, image_ids: np.ndarray, sizes: np.ndarray) -> Evaluation:
        detections = in_pixels(rows, image_ids, sizes, self.dataset.category_ids)
        figures = self.ground_truth.judge(detections)
        return figures | {"quality": figures[self.config.figure]}

    def pictures(self, engine: Engine, state: State, count: int) -> list[bytes]:
        count = min(count, self.num_eval)
        rows = self.measured(engine, state, batches=-(-count // self.config.eval_batch_size))["rows"]
        examples = self.dataset.read_eval(np.arange(count), ("image", "image_id", "size"))
        return [
            drawing.draw(image, self.true_boxes(int(image_id), *map(int, size)), self.found_boxes(found))
            for image, image_id, size, found in zip(*examples.values(), rows[:count], strict=True)
        ]

    # Inference.

    input_names = ("image",)

    def sample_spec(self) -> Spec:
        """The image, and the sample's own number, which the accuracy log wants in every answer."""
        return dict(super().sample_spec()) | {"index": ((), np.dtype(np.int32))}

    def read_samples(self, indices: np.ndarray) -> Batch:
        return super().read_samples(indices) | {"index": np.asarray(indices, np.int32)}

    def answer(self, model: Detector, inputs: Batch) -> jax.Array:
        """[B, K, 7] float32, columns `ANSWER`; a row of label 0 holds no detection."""
        rows = self.detections(model, inputs["image"]).astype(jnp.float32)
        index = jnp.broadcast_to(inputs["index"][:, None, None].astype(jnp.float32), (*rows.shape[:2], 1))
        return jnp.concatenate([index, rows[..., jnp.array([1, 0, 3, 2, 4, 5])]], axis=-1)

    def answered_figures(self, indices: np.ndarray, answers: Sequence[bytes]) -> Evaluation:
        shape = (self.config.detection.detections, len(ANSWER))
        rows = np.stack([np.frombuffer(answer, "<f4").reshape(shape) for answer in answers])
        if not np.array_equal(rows[:, 0, 0], indices):
            raise ValueError("answers name other samples than those that were asked")
        truth = self.dataset.read_eval(indices, ("image_id", "size"))
        detections = in_pixels(
            rows[..., [2, 1, 4, 3, 5, 6]], truth["image_id"], truth["size"], self.dataset.category_ids
        )
        figures = self.ground_truth.judge(detections, truth["image_id"].tolist())
        return figures | {"quality": figures[self.config.figure]}


def in_pixels(
    rows: np.ndarray, image_ids: np.ndarray, sizes: np.ndarray, category_ids: Sequence[int]
) -> np.ndarray:
    """Detections as COCO wants them.

    Args:
        rows: [N, K, 6] corners in [0, 1], score, label; label 0 where there is none.
        image_ids: [N].
        sizes: [N, 2] height and width of the images as the ground truth knows them.
        category_ids: label -> COCO's category id.

    Returns:
        [D, 7] float64: image id, left, top, width, height, score, category id.
    """
    image, slot = np.nonzero(rows[..., 5] > 0)
    left, top, right, bottom, score, label = rows[image, slot].astype(np.float64).T
    height, width = sizes[image].T
    category = np.asarray(category_ids)[label.astype(int)]
    box = (left * width, top * height, (right - left) * width, (bottom - top) * height)
    return np.stack([image_ids[image], *box, score, category], axis=1)


class SSDResNet34(ObjectDetection):
    """SSD-ResNet34 on COCO (closed), and a small one of its family on composites (mini)."""

    benchmark = "ssd"
    published_backbone = "torchvision's resnet34-333f7ec4.pth"

    @functools.cached_property
    def model_config(self) -> SSDConfig:
        return SSDConfig(**self.model_numbers())

    @functools.cached_property
    def anchors(self) -> np.ndarray:
        """[A, 4] float64, as `make_anchors` has them."""
        model, numbers = self.model_config, self.config.anchors
        config = AnchorConfig(model.image_size, numbers.steps, numbers.scales, model.anchors)
        return make_anchors(config, model.feature_sizes)

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        return SSD(self.model_config, policy=self.policy, rngs=rngs)

    def box_loss(self, codes: jax.Array, logits: jax.Array, boxes: jax.Array, labels: jax.Array) -> Loss:
        return mean_of(multibox_loss(codes, logits, boxes, labels, self.anchors))

    def detect(self, codes: jax.Array, logits: jax.Array) -> Detections:
        return detect(codes, logits, self.anchors, Selection(**self.config.detection.to_dict()))

    # Training, as MLPerf trains on COCO: a rate that warms up and falls in steps.

    def schedule(self) -> optax.Schedule:
        """Learning rate by step."""
        config = self.config.schedule
        return schedules.step_decay_with_warmup(
            self.config.optimizer.base_lr,
            config.warmup_steps,
            [self._step_after(epoch) for epoch in config.decay_epochs],
            decay_factor=config.decay_factor,
            warmup_factor=config.warmup_factor,
        )

    def hyperparameters(self) -> dict[str, Any]:
        optimizer, schedule = self.config.optimizer, self.config.schedule
        return {
            "opt_name": optimizer.name,
            "opt_base_learning_rate": optimizer.base_lr,
            "opt_momentum": optimizer.momentum,
            "opt_weight_decay": optimizer.weight_decay,
            "opt_learning_rate_warmup_factor": schedule.warmup_factor,
            "opt_learning_rate_warmup_steps": schedule.warmup_steps,
            "opt_learning_rate_decay_boundary_epochs": list(schedule.decay_epochs),
            "max_samples": self.config.data.crop_attempts,
            "model_bn_span": self.logged_span(),
            "backbone_weights": self.backbone_file.name if self.backbone_file else "random",
        }

    def import_backbone(self, tensors: Mapping[str, Tensor]) -> State:
        return weights.backbone(tensors, self.model_config)

    def import_weights(self, tensors: Mapping[str, Tensor]) -> tuple[State, dict[str, Any]]:
        config = weights.CONFIG | {"variant": self.config.get("variant", "")}
        return weights.from_reference(tensors, self.model_config), config

    def initialized_tensors(self) -> Sequence[str]:
        return weights.logged_names(self.model_config)

    def train_flops_per_example(self) -> float:
        return flops_per_image(self.model_config, train=True)
