"""Images with boxes, masks and keypoints: `masked_detection.MaskedDetection` with 17 points of every object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from input_pipelines import base, synthetic
from input_pipelines.image import box_augmentation, detection, keypoints, made_up_masks, masked_detection


class KeypointSource(masked_detection.MaskedSource, Protocol):
    """Images whose objects have masks and keypoints."""

    def keypoints(self, index: int) -> np.ndarray:
        """Of `masked_objects` of a train image, [n, 17, 3] float32: x and y in parts of the image, and their flags."""
        ...


class KeypointDetection(masked_detection.MaskedDetection):
    """As `masked_detection.MaskedDetection`; a train example has `keypoints` [M, 17, 3] float32 too, in parts of its extent.

    Left and right ones change places where an image is mirrored.
    """

    source: KeypointSource

    def __init__(
        self,
        source: KeypointSource,
        *,
        category_ids: tuple[int, ...],
        ground_truth: Path | Mapping[str, Any],
        options: Mapping[str, Any],
        fake: bool,
        description: str,
    ) -> None:
        super().__init__(
            source,
            category_ids=category_ids,
            ground_truth=ground_truth,
            options=options,
            fake=fake,
            description=description,
        )
        most = options["max_boxes"]
        points = {"keypoints": ((most, keypoints.COUNT, 3), np.dtype(np.float32))}
        self.train_spec = {**self.train_spec, **points}

    def _train_rows(self, positions: np.ndarray, seed: int) -> base.HostBatch:
        batch = super()._train_rows(positions, seed)
        examples = base.examples_at(positions, seed=seed, num_examples=self.num_train)
        for row, (position, example) in enumerate(zip(positions.tolist(), examples.tolist(), strict=True)):
            points = self.source.keypoints(example)
            if next(box_augmentation.stream(seed, position)) < 0.5:  # what mirrors the image
                points = keypoints.mirrored(points)
            batch["keypoints"][row, : len(points)] = points
        return batch


def with_keypoints(content: Mapping[str, Any], labelled: Iterable[np.ndarray]) -> dict[str, Any]:
    """Ground truth in COCO's form with keypoints [17, 3], in pixels, of one annotation after the other."""
    annotations = [
        annotation
        | {"keypoints": points.ravel().tolist(), "num_keypoints": int(np.count_nonzero(points[:, 2]))}
        for annotation, points in zip(content["annotations"], labelled, strict=True)
    ]
    named = {
        "keypoints": list(keypoints.NAMES),
        "skeleton": [[first + 1, last + 1] for first, last in keypoints.SKELETON],
    }
    categories = [category | named for category in content["categories"]]
    return {**content, "annotations": annotations, "categories": categories}


class MadeUpKeypoints(made_up_masks.MadeUpMasks):
    """The `KeypointSource` of a few images, repeated: people who are ellipses, with keypoints anywhere in their boxes."""

    def __init__(
        self, counts: Mapping[str, int], sizes: Sequence[tuple[int, int]], most_objects: int
    ) -> None:
        super().__init__(counts, sizes, num_labels=1, most_objects=most_objects)
        random = np.random.default_rng(1)
        self._points = []
        for i in range(made_up_masks.POOL):
            corners = self.objects(i)[0][:, None]
            share = random.random((len(corners), keypoints.COUNT, 2), np.float32)
            places = corners[..., :2] + share * (corners[..., 2:] - corners[..., :2])
            flags = random.integers(3, size=(*places.shape[:2], 1))
            self._points.append(
                np.where(flags > 0, np.concatenate([places, flags], -1), 0).astype(np.float32)
            )

    def keypoints(self, index: int) -> np.ndarray:
        return self._points[index % made_up_masks.POOL]


def open_synthetic(
    name: str,
    *,
    num_train: int,
    num_eval: int,
    sizes: Sequence[tuple[int, int]],
    options: Mapping[str, Any],
) -> KeypointDetection:
    """A made-up set of people; see `made_up_masks.open_synthetic`."""
    num_train, num_eval = synthetic.counts(options, num_train, num_eval)
    most = min(made_up_masks.MOST_OBJECTS, detection.positive_option(options, "max_boxes"))
    source = MadeUpKeypoints({"train": num_train, "eval": num_eval}, sizes, most)
    truth = detection.coco_truth(
        ((index, *size) for index, size in enumerate(source.sizes.tolist())),
        source.true_boxes((1,)),
        [(1, "person")],
    )
    labelled = (
        points * (width, height, 1)
        for index, (height, width) in enumerate(source.sizes.tolist())
        for points in source.keypoints(index).astype(float)
    )
    return KeypointDetection(
        source,
        category_ids=(1,),
        ground_truth=with_keypoints(truth, labelled),
        options=options,
        fake=True,
        description=synthetic.describe(name, num_train, num_eval),
    )
