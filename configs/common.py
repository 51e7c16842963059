"""What the configs of most workloads share; each file of this folder holds the numbers of its own workload."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

Numbers = dict[str, Any]


def config(
    preset: str,
    *,
    workload: str,
    benchmark: str,
    closed: Callable[[], Numbers],
    mini: Callable[[], Numbers],
) -> ConfigDict:
    """The config of a preset: its own numbers, and those that every workload begins with.

    Args:
        preset: "closed" or "mini".
        workload: its name here.
        benchmark: MLPerf's name for it.
        closed, mini: make the numbers of the presets.
    """
    shared = dict(
        workload=workload,
        benchmark=benchmark,
        preset=preset,
        steps_per_dispatch=1,  # so many steps are compiled as one program
        precision="auto",  # by the platform, see `mlperf_jax.precision`
        reference_point=0,  # a key of `reference_points`, whose numbers are then put in; 0 none
        reference_points={},
    )
    return ConfigDict(shared | {"closed": closed, "mini": mini}[preset]())


def loop(*, eval_every_epochs: int, eval_offset_epochs: int = 0) -> Numbers:
    """Of a workload whose step takes gradients of all parameters, and that is evaluated after whole epochs."""
    return dict(
        eval_offset_epochs=eval_offset_epochs,  # after which the first evaluation is; 0: as all later ones
        eval_every_epochs=eval_every_epochs,
        gradient_accumulation_steps=1,  # into so many parts a batch is cut
        remat="none",  # what the backward pass computes again instead of keeping it
    )


def made_up() -> Numbers:
    """Sizes of the sets that stand in for one that is not there."""
    return dict(
        fake=0,  # N: the made-up set of N train examples that `prepare --fake=N` writes
        num_train=0,  # with --synthetic_data: how many examples; 0 as many as the real set
        num_eval=0,
    )


def imagenet(
    mean: tuple[float, ...] = (123.675, 116.28, 103.53), std: tuple[float, ...] = (58.395, 57.12, 57.375)
) -> Numbers:
    """ImageNet at 224 x 224, normalised by `mean` and `std` of each channel, of values 0 to 255."""
    return dict(
        name="imagenet",
        image_size=224,
        mean=mean,
        std=std,
        **made_up(),
        num_threads=0,  # of decoding in each process; 0 as many as there are cores, at most 8
        num_workers=0,  # processes that decode; 0 none until the step waits for threads (input_pipelines.base)
    )


def fashion_mnist() -> Numbers:
    """Fashion-MNIST, normalised by its own mean and deviation."""
    return dict(name="fashion_mnist", image_size=28, mean=(72.94,), std=(90.02,), num_train=0, num_eval=0)


# Batches of DLRM's samples, which have 100 to 700 rows and 264 on average; of rows, and multiples of what devices divide by.
CLICK_ROWS = (104, 200, 304, 504, 704, 1000, 1400, 2000, 2800, 4000, 5600, 8000, 11200)


def telling(
    *,
    samples: int,
    prompt: int,
    max_tokens: int,
    slots: int,
    page: int,
    chunks: tuple[int, ...],
    min_tokens: int = 1,
    ends: tuple[int, ...] = (),
    max_first_s: float = 0.0,
    max_each_s: float = 0.0,
) -> Numbers:
    """Further `inference` numbers, of models that answer token by token.

    Args:
        samples: of the evaluation set, at most.
        prompt: tokens of a sample that are given.
        max_tokens, min_tokens: to be told.
        slots: texts that are told at a time.
        page: positions of a page of the cache.
        chunks: tokens of a prompt that are read at a time, padded to one of these, ascending.
        ends: tokens that end a text.
        max_first_s, max_each_s: bounds of Server and Interactive on the latency of the first token and of each other; 0
            for LoadGen's.
    """
    return dict(
        weights="auto",  # what kernels are held in: the compute dtype, or "int8", of which answers are a little other
        scenarios=("SingleStream", "Server", "Interactive", "Offline"),
        samples=samples,
        prompt=prompt,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        slots=slots,
        page=page,
        chunks=chunks,
        ends=ends,
        max_first_s=max_first_s,
        max_each_s=max_each_s,
    )


def serving(
    loadgen_model: str,
    batch_sizes: tuple[int, ...],
    *,
    min_duration_s: float = 600.0,
    published_quality: float | dict[str, float] = 0.0,
    sut_timeout_s: float = 60.0,
    **bounds: float,
) -> Numbers:
    """The `inference` numbers.

    Args:
        loadgen_model: under this name LoadGen's own defaults (mlperf.conf) apply.
        batch_sizes: that are compiled; of rows, where a sample is several.
        min_duration_s: of a run; by default MLPerf's.
        published_quality: of MLPerf's weights for inference, by name where there are several figures; 0 where there are none.
        sut_timeout_s: without any answer, until a run is given up.
        bounds: max_latency_s, where Server's bound is not LoadGen's; latency_share, where not 99 % must keep to it.
    """
    return dict(
        loadgen_model=loadgen_model,
        min_duration_s=min_duration_s,
        batch_sizes=batch_sizes,
        samples_on_device=False,  # samples lie in host memory, and their transfer is measured
        quality_share=0.99,  # of the quality that was reached in training
        published_quality=published_quality,
        sut_timeout_s=sut_timeout_s,
        **bounds,
    )
