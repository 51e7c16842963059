"""Articulated figures: people of capsules on a kinematic tree, in random poses and clothes.

A figure is flat: limbs turn in the plane of the image, and what a body that turns or bends away would show shorter is
shorter. Lengths are in parts of the height of a figure that stands upright, angles in degrees. Its left is to the
right of the image, as of people who face us.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from input_pipelines.image import keypoints

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class JointRanges:
    """Between which angles every joint is, uniformly, in degrees.

    Attributes:
        lean: of the body from upright.
        turn: of the body about itself; sideways it is narrower.
        look: of the head about itself, added to the body's.
        nod: of the head from the body's axis.
        shoulder: of an upper arm from hanging, outwards.
        elbow: of a lower arm from its upper arm, the same way round.
        hip: of a thigh from hanging, outwards.
        knee: of a shank from its thigh, inwards.
        shown: what of a limb's length is seen, as a share: the rest points towards us.
    """

    lean: Range
    turn: Range
    look: Range
    nod: Range
    shoulder: Range
    elbow: Range
    hip: Range
    knee: Range
    shown: Range


# Half widths and lengths of the body's parts.
_HEAD, _NECK, _TORSO = 0.065, 0.04, 0.28
_SHOULDERS, _HIPS = 0.105, 0.06
_UPPER_ARM, _LOWER_ARM = 0.17, 0.15
_THIGH, _SHANK = 0.24, 0.23
_EYES = 0.025, 0.015  # beside and above the middle of the head
_GIRTHS = (0.8, 1.3)  # a figure's limbs are so many times as thick as usual ones
_NARROWEST = 0.35  # of a body that has turned away


class Part(NamedTuple):
    """A capsule: ends [2, 2] (x, y), their radii, and what covers it ("skin", "shirt", "trousers", "hair", "eye")."""

    ends: np.ndarray
    radii: tuple[float, float]
    cover: str


class Body(NamedTuple):
    """A figure in a pose, around its pelvis: parts from the rearmost to the foremost, keypoints [17, 2] (x, y)."""

    parts: list[Part]
    points: np.ndarray


def pose(ranges: JointRanges, draws: Iterator[float]) -> Body:
    """Draws a pose and a build."""
    drawn = {name: _between(limits, draws) for name, limits in _central(ranges).items()}
    girth = _between(_GIRTHS, draws)
    lean = drawn["lean"]
    width = max(_NARROWEST, abs(float(np.cos(np.radians(drawn["turn"])))))
    up, right = _down(180 + lean), _down(90 + lean)
    neck = _TORSO * up
    head = neck + (_NECK + _HEAD) * _down(180 + lean + drawn["nod"])
    points = np.zeros((keypoints.COUNT, 2))
    limbs: dict[str, list[Part]] = {}
    for side, sign in (("left", 1), ("right", -1)):
        for joint, ends in (
            ("arm", (neck + sign * width * _SHOULDERS * right, _UPPER_ARM, _LOWER_ARM)),
            ("leg", (sign * width * _HIPS * right, _THIGH, _SHANK)),
        ):
            first, upper, lower = ends
            # Legs stand below a body that leans, arms hang from it.
            names, limits, bend = {
                "arm": (("shoulder", "elbow", "wrist"), (ranges.shoulder, ranges.elbow), 1),
                "leg": (("hip", "knee", "ankle"), (ranges.hip, ranges.knee), -1),
            }[joint]
            angle = sign * _between(limits[0], draws) + (lean if joint == "arm" else 0)
            then = angle + bend * sign * _between(limits[1], draws)
            middle = first + upper * _between(ranges.shown, draws) * _down(angle)
            last = middle + lower * _between(ranges.shown, draws) * _down(then)
            for name, place in zip(names, (first, middle, last), strict=True):
                points[keypoints.NAMES.index(f"{side}_{name}")] = place
            limbs[f"{side} {joint}"] = _limb(joint, first, middle, last, girth)
    face = _face(head, drawn["turn"] + drawn["look"], lean + drawn["nod"], points)
    shoulder, hip = width * _SHOULDERS * girth, width * _HIPS * girth
    torso = [
        Part(np.stack([0 * neck, neck + 0.03 * up]), (0.03 * girth, 0.03 * girth), "skin"),
        Part(np.stack([-hip * right / 2, hip * right / 2]), (0.055 * girth, 0.055 * girth), "trousers"),
        Part(np.stack([0.04 * up, neck - 0.04 * up]), (0.03 * girth + hip, 0.02 * girth + shoulder), "shirt"),
    ]
    near, far = ("left", "right") if drawn["turn"] < 0 else ("right", "left")
    order = [
        limbs[f"{far} arm"],
        limbs[f"{far} leg"],
        limbs[f"{near} leg"],
        torso,
        face,
        limbs[f"{near} arm"],
    ]
    if abs(drawn["turn"]) < 20:  # both arms are before the body
        order = [order[1], order[2], torso, face, order[0], order[5]]
    return Body([part for parts in order for part in parts], points)


def _central(ranges: JointRanges) -> dict[str, Range]:
    return {name: getattr(ranges, name) for name in ("lean", "turn", "look", "nod")}


def _limb(joint: str, first: np.ndarray, middle: np.ndarray, last: np.ndarray, girth: float) -> list[Part]:
    thick, thin = (0.03, 0.022) if joint == "arm" else (0.048, 0.028)
    cover = ("shirt", "skin") if joint == "arm" else ("trousers", "trousers")
    end = Part(np.stack([last, last]), (0.025 * girth, 0.025 * girth), "skin")
    return [
        end,
        Part(np.stack([middle, last]), (1.1 * thin * girth, thin * girth), cover[1]),
        Part(np.stack([first, middle]), (thick * girth, 1.1 * thin * girth), cover[0]),
    ]


def _face(head: np.ndarray, turn: float, tilt: float, points: np.ndarray) -> list[Part]:
    """The head's parts; its keypoints are put into `points`."""
    up, right = _down(180 + tilt), _down(90 + tilt)

    def on_head(beside: float, above: float) -> np.ndarray:
        """A place on a ball, `beside` degrees about its axis from its front."""
        return np.asarray(head + _HEAD * float(np.sin(np.radians(turn + beside))) * right + above * up)

    beside = float(np.degrees(np.arcsin(_EYES[0] / _HEAD)))
    places = {
        "nose": on_head(0, 0),
        "left_eye": on_head(beside, _EYES[1]),
        "right_eye": on_head(-beside, _EYES[1]),
        "left_ear": on_head(80, 0),
        "right_ear": on_head(-80, 0),
    }
    for name, place in places.items():
        points[keypoints.NAMES.index(name)] = place

    def dot(name: str, radius: float, cover: str) -> Part:
        return Part(np.stack([places[name]] * 2), (radius, radius), cover)

    hair = head + 0.03 * up
    return [
        dot("left_ear", 0.016, "skin"),
        dot("right_ear", 0.016, "skin"),
        Part(np.stack([hair, hair]), (0.055, 0.055), "hair"),
        Part(np.stack([head - 0.015 * up, head + 0.01 * up]), (0.045, 0.055), "skin"),
        dot("left_eye", 0.01, "eye"),
        dot("right_eye", 0.01, "eye"),
        dot("nose", 0.01, "hair"),
    ]


def _between(limits: Range, draws: Iterator[float]) -> float:
    return limits[0] + next(draws) * (limits[1] - limits[0])


def _down(degrees: float) -> np.ndarray:
    """The direction so many degrees from straight down, towards the right of the image, [2] (x, y)."""
    angle = np.radians(degrees)
    return np.array([np.sin(angle), np.cos(angle)])


class Cover(NamedTuple):
    """Two colours [3] float64 from 0 to 255, and how they take turns: lines along or across a limb, or none."""

    colours: tuple[np.ndarray, np.ndarray]
    pattern: str
    width: float  # of a line, in pixels


def clothes(draws: Iterator[float]) -> dict[str, Cover]:
    """Draws what covers each part of a figure."""

    def colour() -> np.ndarray:
        return np.array([20 + 220 * next(draws) for _ in range(3)])

    covers = {}
    for name in ("shirt", "trousers"):
        pattern = ("plain", "plain", "along", "across")[int(next(draws) * 4)]
        covers[name] = Cover((colour(), colour()), pattern, 1.5 + 2 * next(draws))
    light = 0.3 + 0.7 * next(draws)
    skin, hair = np.array([245.0, 205, 175]) * light, np.array([130.0, 90, 50]) * 2 * next(draws)
    covers["skin"], covers["hair"] = Cover((skin, skin), "plain", 1), Cover((hair, hair), "plain", 1)
    dark = np.full(3, 20.0)
    return covers | {"eye": Cover((dark, dark), "plain", 1)}


def draw(
    image: np.ndarray, body: Body, covers: dict[str, Cover], at: np.ndarray, height: float
) -> np.ndarray:
    """Draws a figure into an image [H, W, 3] uint8, in place.

    Args:
        image: see above.
        body, covers: of the figure.
        at: [2] x and y of its pelvis, in pixels.
        height: of the figure if it stood upright, in pixels.

    Returns:
        The pixels that it covers, [H, W] bool.
    """
    covered = np.zeros(image.shape[:2], bool)
    for part in body.parts:
        _draw_part(image, covered, part.ends * height + at, np.array(part.radii) * height, covers[part.cover])
    return covered


def _draw_part(
    image: np.ndarray, covered: np.ndarray, ends: np.ndarray, radii: np.ndarray, cover: Cover
) -> None:
    largest = radii.max() + 1
    low = np.maximum(np.floor(ends.min(0) - largest).astype(int), 0)
    high = np.minimum(np.ceil(ends.max(0) + largest).astype(int), [image.shape[1], image.shape[0]])
    if (high <= low).any():
        return
    x = np.arange(low[0], high[0]) + 0.5 - ends[0, 0]
    y = np.arange(low[1], high[1])[:, None] + 0.5 - ends[0, 1]
    along, across = ends[1] - ends[0], float(np.square(ends[1] - ends[0]).sum())
    place = np.clip((x * along[0] + y * along[1]) / across, 0, 1) if across > 0 else np.zeros((1, 1))
    distance = np.sqrt(np.square(x - place * along[0]) + np.square(y - place * along[1]))
    radius = radii[0] + place * (radii[1] - radii[0])
    opaque = np.clip(radius - distance + 0.5, 0, 1)
    lines = {"plain": 0 * distance, "along": distance, "across": place * across**0.5}[cover.pattern]
    first = (lines // cover.width % 2 == 0)[..., None]
    shade = 1 - 0.4 * np.square(np.minimum(distance / radius, 1))
    colour = np.where(first, *cover.colours) * shade[..., None]
    under = image[low[1] : high[1], low[0] : high[0]]
    under[...] = np.rint(under + opaque[..., None] * (np.clip(colour, 0, 255) - under)).astype(np.uint8)
    covered[low[1] : high[1], low[0] : high[0]] |= opaque >= 0.5
