"""Matching, loss and suppression box by box, in NumPy's float64 and plain loops: the judges of ours."""

from __future__ import annotations

import numpy as np


def iou(a, b):
    """Of two boxes (left, top, right, bottom); 0 where they have no area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    first, second = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (first + second - width * height)


def corners(anchor):
    x, y, width, height = anchor
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def match(boxes, labels, anchors):
    """Anchor -> (row of its box or None)."""
    rows = [
        m for m in range(len(labels)) if labels[m] and boxes[m][2] > boxes[m][0] and boxes[m][3] > boxes[m][1]
    ]
    overlap = {(m, a): iou(boxes[m], corners(anchor)) for m in rows for a, anchor in enumerate(anchors)}
    owner = [None] * len(anchors)
    for a in range(len(anchors)):
        if rows:
            best = max(rows, key=lambda m: overlap[m, a])
            if overlap[best, a] > 0.5:
                owner[a] = best
    for m in rows:
        owner[max(range(len(anchors)), key=lambda a: overlap[m, a])] = m
    return owner


def code(box, anchor):
    x, y, width, height = anchor
    return np.array(
        [
            ((box[0] + box[2]) / 2 - x) / width / 0.1,
            ((box[1] + box[3]) / 2 - y) / height / 0.1,
            np.log((box[2] - box[0]) / width) / 0.2,
            np.log((box[3] - box[1]) / height) / 0.2,
        ]
    )


def loss(codes, logits, boxes, labels, anchors):
    """Of one image."""
    owner = match(boxes, labels, anchors)
    positives = [a for a, m in enumerate(owner) if m is not None]
    if not positives:
        return 0.0
    peak = logits.max(1, keepdims=True)
    log_p = logits - peak - np.log(np.exp(logits - peak).sum(1, keepdims=True))
    total = 0.0
    for a in positives:
        apart = np.abs(codes[a] - code(boxes[owner[a]], anchors[a]))
        total += sum(d**2 / 2 if d < 1 else d - 0.5 for d in apart)
        total -= log_p[a, labels[owner[a]]]
    negatives = sorted((-log_p[a, 0] for a, m in enumerate(owner) if m is None), reverse=True)
    return (total + sum(negatives[: 3 * len(positives)])) / len(positives)


def suppress(boxes, present, threshold):
    stays = []
    for j in range(len(boxes)):
        if present[j] and all(iou(boxes[i], boxes[j]) < threshold for i in stays):
            stays.append(j)
    return np.isin(np.arange(len(boxes)), stays)


def detect(codes, logits, anchors, score, candidates, threshold, most):
    """[(box, score, label)] of one image, best first."""
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    decoded = []
    for c, (x, y, width, height) in zip(codes, anchors, strict=True):
        decoded.append(
            corners(
                (
                    c[0] * 0.1 * width + x,
                    c[1] * 0.1 * height + y,
                    np.exp(c[2] * 0.2) * width,
                    np.exp(c[3] * 0.2) * height,
                )
            )
        )
    found = []
    for label in range(1, logits.shape[1]):
        order = sorted(
            (a for a in range(len(anchors)) if shares[a, label] > score), key=lambda a: -shares[a, label]
        )[:candidates]
        stays = suppress([decoded[a] for a in order], [True] * len(order), threshold)
        found += [(decoded[a], shares[a, label], label) for a, stay in zip(order, stays, strict=True) if stay]
    return sorted(found, key=lambda d: -d[1])[:most]
