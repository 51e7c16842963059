"""Segmentation of volumes: a volume in, the class of every voxel out; quality is the mean Dice of classes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from input_pipelines.base import Spec
from input_pipelines.volumes.segmentation import NOT_COUNTED, VolumeDataset
from mlperf_jax.errors import UserError
from mlperf_jax.parallel.layout import Layout, LogicalAxes
from mlperf_jax.segmentation import dice, drawing
from mlperf_jax.segmentation.windows import segment
from mlperf_jax.supervised import Loss, SupervisedWorkload, mean_of
from mlperf_jax.training import schedules
from mlperf_jax.training.engine import Engine, lower, named
from mlperf_jax.weights import unet3d as weights
from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.workload import NO_NOTES, Batch, Evaluation, Notes, Program, State
from models.unet3d import UNet3D, UNet3DConfig, flops_per_patch


class UNet3DSegmentation(SupervisedWorkload[UNet3D, VolumeDataset]):
    """3D U-Net on KiTS19 (closed), and a small one of its family on Colin27 (mini).

    Trained on patches: image float32 [B, *patch, 1], label uint8 [B, *patch]. Evaluated on whole volumes of few
    shapes, `size` [B, 3] of each being what windows cover.
    """

    benchmark = "unet3d"
    unit = "patches"
    metric = "mean Dice"

    @functools.cached_property
    def model_config(self) -> UNet3DConfig:
        """Raises UserError where a patch does not suit the network."""
        try:
            return UNet3DConfig(**self.config.model.to_dict(), patch=tuple(self.config.data.patch))
        except ValueError as error:
            raise UserError(f"--config.model and --config.data.patch do not go together: {error}.") from None

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        return UNet3D(self.model_config, policy=self.policy, rngs=rngs)

    def batch_axes(self, name: str) -> LogicalAxes:
        return ("batch", "depth") if name in ("image", "label") else ("batch",)

    def check_data(self) -> None:
        """Also: that the model has a class for each label, and that windows are whole strides."""
        super().check_data()
        classes = len(self.dataset.class_names) + 1
        if classes != self.model_config.num_classes:
            raise UserError(
                f"The data has {classes} classes with the background and the model "
                f"{self.model_config.num_classes}; use --config.model.num_classes={classes}."
            )
        patch, stride = tuple(self.config.data.patch), tuple(self.config.data.stride)
        if any(side % step for side, step in zip(patch, stride, strict=True)):
            raise UserError(
                f"A window of {patch} is no whole number of strides {stride}; change --config.data.stride."
            )

    # Training.

    def loss(self, model: UNet3D, batch: Batch, key: jax.Array) -> Loss:
        return mean_of(dice.dice_and_cross_entropy(model(batch["image"]), batch["label"]))

    def schedule(self) -> optax.Schedule:
        """By whole epochs, see `schedules.epochs_warmup`."""
        config = self.config.schedule
        return schedules.epochs_warmup(
            self.config.optimizer.base_lr,
            config.warmup_epochs,
            config.decay_epochs,
            steps_per_epoch=self.num_train / self.batch_size,
            init_lr=config.init_lr,
            decay_factor=config.decay_factor,
        )

    def hyperparameters(self) -> dict[str, Any]:
        optimizer, schedule, data = self.config.optimizer, self.config.schedule, self.config.data
        momentum = {"opt_momentum": optimizer.momentum} if "momentum" in optimizer else {}
        return {
            "opt_name": {"torch_sgd": "sgd"}.get(optimizer.name, optimizer.name),
            "opt_base_learning_rate": optimizer.base_lr,
            **momentum,
            "opt_weight_decay": optimizer.get("weight_decay", 0.0),
            "opt_initial_learning_rate": schedule.init_lr,
            "opt_learning_rate_warmup_epochs": schedule.warmup_epochs,
            "opt_learning_rate_decay_boundary_epochs": list(schedule.decay_epochs),
            "opt_learning_rate_decay_factor": schedule.decay_factor,
            "oversampling": data.oversampling,
            "training_input_shape": list(data.patch),
            "validation_input_shape": list(data.patch),
            "validation_overlap": 1 - data.stride[0] / data.patch[0],
            "samples_per_epoch": self.num_train,
        }

    def initialized_tensors(self) -> Sequence[str]:
        return weights.logged_names(self.model_config)

    def train_flops_per_example(self) -> float:
        return flops_per_patch(self.model_config, train=True)

    # Evaluation.

    def segments(self, model: UNet3D, inputs: Batch) -> jax.Array:
        """The class of each voxel [B, D, H, W] uint8, of `image` and `size`."""
        config = self.model_config
        return segment(
            model,
            inputs["image"],
            inputs["size"],
            window=config.patch,
            stride=tuple(self.config.data.stride),
            num_classes=config.num_classes,
        )

    def eval_totals(self) -> Any:
        """Sums over volumes: of Dice [K - 1], and how many these are."""
        wide = jnp.promote_types(self.policy.param_dtype, jnp.float32)
        return {"dice": jnp.zeros(self.model_config.num_classes - 1, wide), "volumes": jnp.zeros((), wide)}

    def eval_update(self, totals: Any, model: UNet3D, batch: Batch) -> Any:
        found = self.segments(model, batch)
        each = dice.overlaps(batch["label"], found, self.model_config.num_classes, NOT_COUNTED)
        mask = batch["mask"].astype(totals["dice"].dtype)
        return {
            "dice": totals["dice"] + (each.astype(mask.dtype) * mask[:, None]).sum(0),
            "volumes": totals["volumes"] + mask.sum(),
        }

    def eval_result(self, totals: Any) -> Evaluation:
        return self._figures(totals["dice"] / totals["volumes"])

    def _figures(self, of_classes: np.ndarray) -> Evaluation:
        named = zip(self.dataset.class_names, of_classes.tolist(), strict=True)
        return {"quality": float(np.mean(of_classes)), **{f"dice_{name}": value for name, value in named}}

    def evaluate(self, engine: Engine, state: State, notes: Notes = NO_NOTES) -> Evaluation:
        totals, served = engine.run("eval_init"), self.served_state(state)
        size = self.config.eval_batch_size
        on_cpu = engine.layout.mesh.devices.flat[0].platform == "cpu"
        for bucket in self.dataset.evaluation.buckets:
            struct = self._whole_struct(bucket, engine.layout)
            batches = self.dataset.whole_batches(bucket, batch_size=size, rows=engine.layout.rows(size))
            for batch in batches:
                totals = engine.run(named("eval_step", bucket), totals, served, engine.place(batch, struct))
                if (
                    on_cpu
                ):  # virtual devices share threads: collectives of steps in flight would wait for each other
                    jax.block_until_ready(totals)
            batches.close()
        return self.eval_result(jax.device_get(totals))

    def _whole_struct(self, bucket: str, layout: Layout) -> Batch:
        """An evaluation batch of a bucket as structs; volumes lie whole, for windows begin anywhere."""
        size = self.config.eval_batch_size
        spec: Spec = {**self.dataset.evaluation.spec(bucket), "mask": ((), np.dtype(np.float32))}
        return {
            name: layout.struct((size, *shape), dtype, ("batch", *[None] * len(shape)))
            for name, (shape, dtype) in spec.items()
        }

    def programs(self, state: State, layout: Layout) -> dict[str, Program]:
        def eval_step(totals: Any, served: State, batch: Batch) -> Any:
            return self.eval_update(totals, self.model(served), batch)

        totals = self.eval_structs(layout)
        places = jax.tree.map(lambda x: x.sharding, totals)
        served = self.served_state(state)
        steps = {
            named("eval_step", bucket): Program(
                eval_step,
                (totals, served, self._whole_struct(bucket, layout)),
                donate=(0,),
                out_shardings=places,
            )
            for bucket in self.dataset.evaluation.buckets
        }
        return {"eval_init": Program(self.eval_totals, (), out_shardings=places), **steps}

    # Pictures.

    def pictures(self, engine: Engine, state: State, count: int) -> list[bytes]:
        """Of the bucket of the first example, whose program is compiled only here: most runs draw nothing."""
        wholes, layout, size = self.dataset.evaluation, engine.layout, self.config.eval_batch_size
        bucket = wholes.bucket_of[0]
        struct = {name: self._whole_struct(bucket, layout)[name] for name in self.input_names}
        served = self.served_state(state)
        program = Program(
            lambda served, inputs: self.segments(self.model(served), inputs),
            (self.served_state(engine.state), struct),
            out_shardings=layout.replicated,
        )
        segments = lower(program, layout, self.policy).compile()
        shown = [i for i, name in enumerate(wholes.bucket_of) if name == bucket][:count]
        pictures = []
        for first in range(0, len(shown), size):
            examples = shown[first : first + size]
            padded = np.array([*examples, *[examples[0]] * (size - len(examples))])
            batch = wholes.read(padded[layout.rows(size)], self.input_names)
            found = np.asarray(segments(served, engine.place(batch, struct)))
            for i, labels in zip(examples, found, strict=False):
                inside = labels[tuple(map(slice, wholes.shapes[i]))]
                pictures.append(
                    drawing.draw(wholes.image(i), wholes.label(i), inside, self.model_config.num_classes)
                )
        return pictures

    # Inference.

    input_names = ("image", "size")

    @property
    def num_samples(self) -> int:
        return len(self.dataset.serving)

    def sample_specs(self) -> Mapping[str, Spec]:
        serving = self.dataset.serving
        return {
            bucket: {name: serving.spec(bucket)[name] for name in self.input_names}
            for bucket in serving.buckets
        }

    def sample_buckets(self, indices: np.ndarray) -> Sequence[str]:
        return [self.dataset.serving.bucket_of[i] for i in indices.tolist()]

    def read_samples(self, indices: np.ndarray) -> Batch:
        return self.dataset.serving.read(indices, self.input_names)

    def answer(self, model: UNet3D, inputs: Batch) -> jax.Array:
        """The class of each voxel, [B, D, H, W] uint8 in the bucket's shape."""
        return self.segments(model, inputs)

    def logged_answer(self, index: int, answer: np.ndarray) -> np.ndarray:
        """The classes of the volume itself, as MLPerf Inference's accuracy script wants them: uint8 [D, H, W]."""
        return np.ascontiguousarray(answer[tuple(map(slice, self.dataset.serving.shapes[index]))])

    def answered_figures(self, indices: np.ndarray, answers: Sequence[bytes]) -> Evaluation:
        serving, classes = self.dataset.serving, self.model_config.num_classes
        each = []
        for index, answer in zip(indices.tolist(), answers, strict=True):
            found = np.frombuffer(answer, np.uint8).reshape(serving.shapes[index])
            if found.max() >= classes:
                raise ValueError(f"sample {index} has class {found.max()} of {classes}")
            pairs = serving.label(index).astype(np.int64) * classes + found
            counts = np.bincount(pairs.ravel(), minlength=classes**2)[: classes**2].reshape(classes, classes)
            each.append(dice.dice(np.diag(counts), counts.sum(1), counts.sum(0))[1:])
        return self._figures(np.mean(each, axis=0))

    def import_weights(self, tensors: Mapping[str, Tensor]) -> tuple[State, dict[str, Any]]:
        return weights.from_reference(tensors, self.model_config), {}
