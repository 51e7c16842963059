"""Matching, mined loss and greedy picking box by box, in NumPy's float64 and plain loops: the judges of ours."""

from __future__ import annotations

import numpy as np

from tests.detection.reference import code, corners, iou


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
            if overlap[best, a] >= 0.5:
                owner[a] = best
    for m in reversed(rows):  # the first of several has the last word
        owner[max(range(len(anchors)), key=lambda a: overlap[m, a])] = m
    return owner


def decoded(c, anchor):
    x, y, width, height = anchor
    return corners(
        (
            c[0] * 0.1 * width + x,
            c[1] * 0.1 * height + y,
            np.exp(c[2] * 0.2) * width,
            np.exp(c[3] * 0.2) * height,
        )
    )


def anchor_losses(codes, logits, boxes, labels, anchors, owner):
    """(of the box, of the classes) of every anchor of one image."""
    located, classified = np.zeros(len(anchors)), np.zeros(len(anchors))
    for a, m in enumerate(owner):
        for label, logit in enumerate(logits[a]):
            there = label == (0 if m is None else labels[m])
            classified[a] += np.logaddexp(0, logit) - (logit if there else 0)
        if m is not None:
            apart = np.abs(codes[a] - code(boxes[m], anchors[a]))
            located[a] = sum(d**2 / 2 if d < 1 else d - 0.5 for d in apart)
    return located, classified


def mined(losses, predicted, owner, threshold):
    """The anchors that count, as the reference's hard example miner goes through them."""
    kept = []
    for a in sorted(range(len(losses)), key=lambda a: -losses[a]):
        if all(iou(predicted[a], predicted[b]) <= threshold for b in kept):
            kept.append(a)
    positives = [a for a in kept if owner[a] is not None]
    negatives = [a for a in kept if owner[a] is None]
    return positives + negatives[: 3 * len(positives)]


def loss(codes, logits, boxes, labels, anchors, threshold):
    """(sum, number of matched anchors) of one image."""
    owner = match(boxes, labels, anchors)
    located, classified = anchor_losses(codes, logits, boxes, labels, anchors, owner)
    predicted = [decoded(c, anchor) for c, anchor in zip(codes, anchors, strict=True)]
    counted = mined(classified, predicted, owner, threshold)
    return sum(located[a] + classified[a] for a in counted), sum(m is not None for m in owner)


def suppressed_by_class(boxes, scores, score, threshold):
    """[(box, score, label)]: what the suppression of each class leaves, the best first."""
    found = []
    for label in range(scores.shape[1]):
        stays = []
        order = sorted(
            (a for a in range(len(boxes)) if scores[a, label] > score), key=lambda a: -scores[a, label]
        )
        for a in order:
            if all(iou(boxes[a], boxes[b]) <= threshold for b in stays):
                stays.append(a)
        found += [(boxes[a], scores[a, label], label + 1) for a in stays]
    return sorted(found, key=lambda d: -d[1])


def detect(boxes, scores, score, threshold, most):
    """[(box, score, label)] of one image, cut at its edges, without what is outside."""
    found = []
    for box, value, label in suppressed_by_class(boxes, scores, score, threshold):
        cut = np.clip(box, 0, 1)
        if cut[2] > cut[0] and cut[3] > cut[1]:
            found.append((cut, value, label))
    return found[:most]
