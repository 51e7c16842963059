"""Instance segmentation: a picture in, objects with boxes, classes and masks out; quality is COCO's mean average
precision of both.

**What stays where.** Masks of COCO's 5,000 evaluation images would be 1.6 GB in float32, so they never gather on the
devices: each batch's detections leave as bytes, a mask as 255ths, before the next but one begins. A thread takes what
has a score, puts the masks into their images and keeps them as runs of pixels; training goes on meanwhile.

**An answer** is so many detections, the best first, as `mlperf_jax.detection.mask_answers` writes them: numbers and a
mask of bytes each. The accuracy log has those that there are, and nothing else.
"""

from __future__ import annotations

import abc
import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from input_pipelines.image.masked_detection import MaskedDetection
from mlperf_jax.detection import drawing
from mlperf_jax.detection.mask_answers import NUMBERS, Found, is_there, numbers_of, packed, unpacked
from mlperf_jax.detection.proposals import proposal_anchors, proposal_loss, propose
from mlperf_jax.detection.regions import (
    Regions,
    detect_regions,
    draw_regions,
    mask_loss,
    mask_targets,
    of_class,
    region_loss,
    shares_of_255,
)
from mlperf_jax.detection.roi_align import roi_align
from mlperf_jax.detection.suppression import Detections, Selection
from mlperf_jax.goals import Goal
from mlperf_jax.metrics import masks as pasted
from mlperf_jax.parallel.layout import Layout
from mlperf_jax.supervised import Loss
from mlperf_jax.training import schedules
from mlperf_jax.training.engine import Engine, named
from mlperf_jax.weights import maskrcnn as weights
from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.workload import (
    NO_NOTES,
    Batch,
    Block,
    Bucketed,
    Buckets,
    Evaluation,
    Notes,
    Program,
    Spec,
    State,
)
from mlperf_jax.workloads.object_detection import JudgedDetection, in_pixels, is_drawn
from models.maskrcnn import MaskRCNN, MaskRCNNConfig, flops_per_image


class Kept(NamedTuple):
    """Detections [n, 7], as `GroundTruth.judge` takes them, the pixels of each, and bytes beyond masks, one array for an image."""

    detections: np.ndarray
    runs: list[dict[str, Any]]
    beyond: list[np.ndarray]


class TwoStages(Protocol):
    """A network of two stages, see `models.maskrcnn.MaskRCNN`; its heads are called on what boxes hold."""

    @property
    def boxes(self) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]: ...

    @property
    def masks(self) -> Callable[[jax.Array], jax.Array]: ...

    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]: ...


class TwoStageConfig(Protocol):
    """Sizes that the second stage asks for."""

    @property
    def strides(self) -> tuple[int, ...]: ...

    @property
    def box_window(self) -> int: ...

    @property
    def mask_window(self) -> int: ...


M = TypeVar("M", bound=TwoStages)
D = TypeVar("D", bound=MaskedDetection)


class InstanceSegmentation(JudgedDetection[M, D]):
    """Boxes, and what of them belongs to their object. A family of networks brings its own, and what else it finds in boxes.

    Images lie in padded shapes, each a bucket with programs of its own, named as "800x1344".
    """

    row_bytes_beyond_mask = 0
    """What a family adds to a row of `mask_answers`."""

    @property
    def _row_bytes(self) -> int:
        return NUMBERS + (2 * self.model_config.mask_window) ** 2

    @property
    @abc.abstractmethod
    def model_config(self) -> TwoStageConfig:
        """The sizes of the network."""

    # Training.

    def loss(self, model: M, batch: Batch, key: jax.Array) -> Loss:
        """The losses of both stages, added up: of Mask R-CNN the five of the reference.

        Each is a mean over what the batch was found to have of its examples. Micro-batches count alike, as the
        reference's processes do, whose gradients are averaged.
        """
        levels, logits, codes = model(self.shown(batch), train=True)
        extent, labels = batch["extent"], batch["labels"]
        boxes = batch["boxes"] * _sides(extent)[:, None]
        for_anchors, for_regions = jax.random.split(key)
        anchors = self.anchors(levels)
        losses = list(proposal_loss(logits, codes, boxes, labels, extent, anchors, for_anchors))

        numbers = self.config.regions
        proposals = self.proposals(logits, codes, extent, anchors, self.config.proposals.train)
        regions = draw_regions(
            *proposals, boxes, labels, for_regions, count=numbers.count, share=numbers.share
        )
        losses += region_loss(
            *model.boxes(self.held(levels, regions.corners, self.model_config.box_window)), regions, boxes
        )

        positive = regions.first(int(numbers.count * numbers.share))
        losses += self.losses_in_boxes(model, levels, positive, boxes, batch)
        return jnp.stack(losses).sum() * len(labels), len(labels)

    def losses_in_boxes(
        self, model: M, levels: Sequence[jax.Array], positive: Regions, boxes: jax.Array, batch: Batch
    ) -> list[jax.Array]:
        """What the heads cost that look into boxes which hold something; `boxes` [B, M, 4] are the true ones, in pixels."""
        masks = model.masks(self.held(levels, positive.corners, self.model_config.mask_window))
        targets = mask_targets(batch["masks"], positive, boxes, masks.shape[2])
        return [mask_loss(masks, targets, positive.labels)]

    def shown(self, inputs: Batch) -> jax.Array:
        """Normalised images, 0 beyond their extent."""
        images = self.normalise(inputs["image"])
        height, width = jnp.split(inputs["extent"], 2, axis=1)
        rows, columns = (jnp.arange(side) for side in images.shape[1:3])
        inside = (rows < height)[:, :, None] & (columns < width)[:, None]
        return jnp.where(inside[..., None], images, 0)

    def anchors(self, levels: Sequence[jax.Array]) -> list[np.ndarray]:
        """Those of every level and of the last one, pooled, as `proposal_anchors` has them."""
        maps = [(level.shape[1], level.shape[2]) for level in levels]
        height, width = maps[-1]
        maps.append(((height + 1) // 2, (width + 1) // 2))
        return proposal_anchors(maps, self.model_config.strides, self.config.anchor_sizes)

    def proposals(
        self,
        logits: Sequence[jax.Array],
        codes: Sequence[jax.Array],
        extent: jax.Array,
        anchors: Sequence[np.ndarray],
        numbers: ConfigDict,
    ) -> tuple[jax.Array, jax.Array]:
        """Boxes [B, P, 4] that may hold something, and which of them there are [B, P]."""
        iou = self.config.proposals.iou
        return propose(
            logits, codes, extent, anchors, candidates=numbers.candidates, iou=iou, count=numbers.count
        )

    def held(self, levels: Sequence[jax.Array], corners: jax.Array, window: int) -> jax.Array:
        """What boxes hold, [B, R, window, window, channels]."""
        return roi_align(levels, self.model_config.strides[:-1], corners, window)

    def schedule(self) -> optax.Schedule:
        """Learning rate by step; in the warm-up each step adds `warmup_factor` to it, as in MLPerf's log."""
        rate, config = self.config.optimizer.base_lr, self.config.schedule
        rise = config.warmup_steps * config.warmup_factor
        return schedules.step_decay_with_warmup(
            rate,
            config.warmup_steps,
            config.decay_steps,
            decay_factor=config.decay_factor,
            warmup_factor=float(np.log2(rate / rise)) if rise else 0.0,
        )

    # Buckets.

    def _buckets(self, spec: Spec, size: int, layout: Layout) -> Buckets:
        found = ((_bucket(shape), _of_shape(spec, shape)) for shape in self.dataset.shapes)
        return Buckets({bucket: self._structs(one, size, layout) for bucket, one in found})

    def batch_struct(self, layout: Layout) -> Buckets:
        return self._buckets(self.dataset.train_spec, self.batch_size, layout)

    def eval_batch_structs(self, layout: Layout) -> Buckets:
        return self._buckets(self.dataset.eval_spec, self.config.eval_batch_size, layout)

    def eval_bucket(self, batch: Batch) -> str:
        return _bucket(batch["image"].shape[1:3])

    def data(
        self, engine: Engine, state: State, block: Block, start: int, notes: Notes = NO_NOTES
    ) -> tuple[State, Iterator[Batch | Bucketed]]:
        state, batches = super().data(engine, state, block, start, notes)
        return state, (Bucketed(self.eval_bucket(batch), batch) for batch in batches)  # type: ignore[arg-type]

    # Evaluation.

    def detected(self, model: M, inputs: Batch) -> tuple[Detections, tuple[jax.Array, ...]]:
        """Detections of `image` and `extent`, corners in parts of the images, and what `found_in_boxes` says of them."""
        extent = inputs["extent"]
        levels, logits, codes = model(self.shown(inputs), train=False)
        anchors = self.anchors(levels)
        proposals = self.proposals(logits, codes, extent, anchors, self.config.proposals.eval)
        selection = Selection(**self.config.detection.to_dict())
        held = self.held(levels, proposals[0], self.model_config.box_window)
        found = detect_regions(*model.boxes(held), *proposals, extent, selection)
        parts = found.corners / _sides(extent)[:, None].astype(found.corners.dtype)
        in_boxes = self.found_in_boxes(model, levels, found, extent)
        return Detections(parts, found.scores, found.labels), in_boxes

    def found_in_boxes(
        self, model: M, levels: Sequence[jax.Array], found: Detections, extent: jax.Array
    ) -> tuple[jax.Array, ...]:
        """Masks [B, K, w, w] uint8 of what was found, whose corners are in pixels, and what else a family finds, [B, K, n] uint8."""
        masks = model.masks(self.held(levels, found.corners, self.model_config.mask_window))
        return (shares_of_255(of_class(masks, found.labels)),)

    def answer(self, model: M, inputs: Batch) -> jax.Array:
        """[B, K, 28 + w w] uint8, see `mask_answers`, and what else is found in boxes; a row of label 0 holds no detection."""
        found, (masks, *beyond) = self.detected(model, inputs)
        return jnp.concatenate([packed(inputs["index"], found, masks), *beyond], axis=-1)

    def programs(self, state: State, layout: Layout) -> dict[str, Program]:
        """A bucket's evaluation batch to the answers to it, on every device whole."""

        def detect(served: State, batch: Batch) -> Batch:
            known = {name: batch[name] for name in ("image_id", "size", "mask")}
            inputs = batch | {"index": jnp.zeros_like(batch["image_id"])}
            return known | {"answer": self.answer(self.model(served), inputs)}

        served = self.served_state(state)
        return {
            named("detect", bucket): Program(detect, (served, batch), out_shardings=layout.replicated)
            for bucket, batch in self.eval_batch_structs(layout).items()
        }

    def measured_batches(self, engine: Engine, state: State) -> Generator[Batch]:
        """The answers to each evaluation batch on the host, while the devices are at the next one."""
        structs, served = self.eval_batch_structs(engine.layout), self.served_state(state)
        size, waiting = self.config.eval_batch_size, None
        on_cpu = engine.layout.mesh.devices.flat[0].platform == "cpu"
        with contextlib.closing(
            self.dataset.eval_batches(batch_size=size, rows=engine.layout.rows(size))
        ) as read:
            for batch in read:
                bucket = self.eval_bucket(batch)
                found = engine.run(named("detect", bucket), served, engine.place(batch, structs[bucket]))
                if on_cpu:  # virtual devices share threads: collectives in flight would wait for each other
                    jax.block_until_ready(found)
                if waiting is not None:
                    yield jax.device_get(waiting)
                waiting = found
        if waiting is not None:
            yield jax.device_get(waiting)

    def evaluate(self, engine: Engine, state: State, notes: Notes = NO_NOTES) -> Future[Evaluation]:
        parts = [
            self.scorer.submit(self.kept, batch["answer"][real], batch["image_id"][real], batch["size"][real])
            for batch in self.measured_batches(engine, state)
            for real in [batch["mask"] > 0]
        ]
        return self.scorer.submit(lambda: self.judged([part.result() for part in parts]))

    def kept(self, answers: Sequence[np.ndarray], image_ids: np.ndarray, sizes: np.ndarray) -> Kept:
        """Detections of images as the ground truth's package takes them, of answers [N, K, 28 + w w] or as many [n, ...]."""
        detections, runs, beyond = [np.zeros((0, 7))], [], []
        for answer, image_id, (height, width) in zip(answers, image_ids, sizes.tolist(), strict=True):
            (rows, masks), more = self.unpacked(answer)
            detections.append(
                in_pixels(rows[None], image_id[None], np.array([[height, width]]), self.dataset.category_ids)
            )
            corners = rows[:, :4] * [width, height, width, height]
            runs += [pasted.run_lengths(*one, height, width) for one in zip(masks, corners, strict=True)]
            beyond.append(more)
        return Kept(np.concatenate(detections), runs, beyond)

    def judged(self, parts: Sequence[Kept], image_ids: Sequence[int] | None = None) -> Evaluation:
        """The figures of detections, by some images or all."""
        detections = np.concatenate([part.detections for part in parts])
        runs = [run for part in parts for run in part.runs]
        boxes = self.ground_truth.judge(detections, image_ids)
        masks = self.ground_truth.judge(detections, image_ids, runs)
        return {f"{kind}_{name}": x for kind, y in (("box", boxes), ("mask", masks)) for name, x in y.items()}

    def unpacked(self, answer: np.ndarray) -> tuple[Found, np.ndarray]:
        """The detections of an answer, and the bytes that follow each, [n, row_bytes_beyond_mask] uint8."""
        answer = answer[is_there(answer)]
        return unpacked(answer[:, : self._row_bytes]), answer[:, self._row_bytes :]

    def pictures(self, engine: Engine, state: State, count: int) -> list[bytes]:
        """Of the first examples by bucket, as evaluation takes them."""
        ids: list[int] = []
        found: list[tuple[Found, np.ndarray]] = []
        with contextlib.closing(self.measured_batches(engine, state)) as batches:
            while len(ids) < min(count, self.num_eval):
                batch = next(batches)
                real = batch["mask"] > 0
                ids += batch["image_id"][real].tolist()
                found += map(self.unpacked, batch["answer"][real])
        return [self._picture(one, *those) for one, those in zip(ids[:count], found[:count], strict=True)]

    def _picture(self, image_id: int, found: Found, beyond: np.ndarray) -> bytes:
        index = np.flatnonzero(self.dataset.source.image_ids == image_id)
        example = self.dataset.read_eval(index, ("image", "extent", "size"))
        height, width = example["extent"][0].tolist()
        there = is_drawn(found.rows)
        rows, masks = found.rows[there], found.masks[there]
        covered = np.zeros((len(rows), height, width), np.uint8)
        for one, mask, corners in zip(
            covered, masks, rows[:, :4] * [width, height, width, height], strict=True
        ):
            pasted.paste(one, mask, corners.astype(np.float32))
        return drawing.draw(
            example["image"][0, :height, :width],
            self.true_boxes(image_id, *example["size"][0].tolist()),
            self.found_boxes(rows),
            covered.astype(bool),
            self.lines(beyond[there]),
        )

    def lines(self, beyond: np.ndarray) -> Sequence[np.ndarray]:
        """What else is drawn of detections [n, row_bytes_beyond_mask]: for each lines between points, [m, 2, 2] x and y in parts of the image."""
        return ()

    # Inference: a sample is an image in its padded shape.

    input_names = ("image", "extent")

    def sample_specs(self) -> Mapping[str, Spec]:
        spec = {name: self.dataset.eval_spec[name] for name in self.input_names}
        spec["index"] = ((), np.dtype(np.int32))
        return {_bucket(shape): _of_shape(spec, shape) for shape in self.dataset.shapes}

    def sample_buckets(self, indices: np.ndarray) -> Sequence[str]:
        return [_bucket(shape) for shape in self.dataset.eval_shape(indices)]

    def read_samples(self, indices: np.ndarray) -> Batch:
        return super().read_samples(indices) | {"index": np.asarray(indices, np.int32)}

    def logged_answer(self, index: int, answer: np.ndarray) -> np.ndarray:
        """The detections that there are."""
        return np.ascontiguousarray(answer[: int(is_there(answer).sum())])

    def answered_figures(self, indices: np.ndarray, answers: Sequence[bytes]) -> Evaluation:
        row = self._row_bytes + self.row_bytes_beyond_mask
        found = []
        for index, answer in zip(indices.tolist(), answers, strict=True):
            if len(answer) % row:
                raise ValueError(f"the answer to sample {index} is no number of detections of {row} bytes")
            rows = np.frombuffer(answer, np.uint8).reshape(-1, row)
            if (numbers_of(rows)[:, 0] != index).any():
                raise ValueError("answers name other samples than those that were asked")
            found.append(rows)
        truth = self.dataset.read_eval(indices, ("image_id", "size"))
        kept = self.kept(found, truth["image_id"], truth["size"])
        return self.judged([kept], truth["image_id"].tolist())

    # Facts for logs.

    def hyperparameters(self) -> dict[str, Any]:
        optimizer, schedule, data = self.config.optimizer, self.config.schedule, self.config.data
        return {
            "opt_name": {"torch_sgd": "sgd"}.get(optimizer.name, optimizer.name),
            "opt_base_learning_rate": optimizer.base_lr,
            **({"opt_momentum": optimizer.momentum} if "momentum" in optimizer else {}),
            "opt_weight_decay": optimizer.weight_decay,
            "opt_learning_rate_warmup_steps": schedule.warmup_steps,
            "opt_learning_rate_warmup_factor": schedule.warmup_factor,
            "opt_learning_rate_decay_factor": schedule.decay_factor,
            "opt_learning_rate_decay_steps": list(schedule.decay_steps),
            "num_image_candidates": self.config.proposals.train.count,
            "min_image_size": data.shorter,
            "max_image_size": data.longest,
            "backbone_weights": self.backbone_file.name if self.backbone_file else "random",
        }


class MaskRCNNSegmentation(InstanceSegmentation[MaskRCNN, MaskedDetection]):
    """Mask R-CNN on COCO (closed), and a small one of its family on composites (mini)."""

    benchmark = "maskrcnn"
    published_backbone = "MSRA's ResNet-50 of Detectron, R-50.pkl"

    @functools.cached_property
    def model_config(self) -> MaskRCNNConfig:
        return MaskRCNNConfig(**self.model_numbers())

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        return MaskRCNN(self.model_config, policy=self.policy, rngs=rngs)

    def is_frozen(self, path: tuple[str | int, ...]) -> bool:
        return self.model_config.is_fixed(path)

    @property
    def goals(self) -> tuple[Goal, ...]:
        """Of boxes and of masks, under the names that MLPerf's log has."""
        target, figure = self.config.target, {"mAP": "mAP", "mAP_50": "mAP at IoU .5"}[self.config.figure]
        return (
            Goal("BBOX", target.BBOX, metric=f"box {figure}"),
            Goal("SEGM", target.SEGM, metric=f"mask {figure}"),
        )

    def judged(self, parts: Sequence[Kept], image_ids: Sequence[int] | None = None) -> Evaluation:
        figures, figure = super().judged(parts, image_ids), self.config.figure
        return {"BBOX": figures[f"box_{figure}"], "SEGM": figures[f"mask_{figure}"], **figures}

    def import_backbone(self, tensors: Mapping[str, Tensor]) -> State:
        return weights.backbone(tensors, self.model_config)

    def import_weights(self, tensors: Mapping[str, Tensor]) -> tuple[State, dict[str, Any]]:
        state, changes = weights.published(tensors, self.model_config)
        return self.parted(state), changes

    def train_flops_per_example(self) -> float:
        """Of an image of the largest padded shape."""
        numbers = self.config.regions
        positive = int(numbers.count * numbers.share)
        return flops_per_image(
            self.model_config, self.dataset.shapes[-1], numbers.count, positive, train=True
        )


def _sides(extent: jax.Array) -> jax.Array:
    """Heights and widths [B, 2] as what corners are parts of, [B, 4]."""
    return jnp.tile(extent[:, ::-1], (1, 2))


def _bucket(shape: Sequence[int]) -> str:
    height, width = shape
    return f"{height}x{width}"


def _of_shape(spec: Spec, shape: Sequence[int]) -> Spec:
    """A spec whose images have a padded shape."""
    return {
        name: ((*shape, 3), dtype) if name == "image" else (one, dtype) for name, (one, dtype) in spec.items()
    }
