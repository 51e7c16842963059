"""A small SSD on MobileNet v2 as a TFLite graph with random weights of 16 bits: as MediaPipe's, norms folded, names none."""

import numpy as np

from benchmarks.tflite_graph import ADD, NO_ACTIVATION, Graph
from models.ssd_mobilenet_v2 import SSDMobileNetV2Config

SMALL = SSDMobileNetV2Config(
    image_size=48,
    num_classes=5,
    stem=8,
    blocks=((1, 8, 1), (3, 12, 2), (3, 12, 1), (2, 16, 2), (3, 16, 1)),
    taken_in=4,
    last=40,
    extra_inner=(8,),
    extra_outer=(24,),
    anchors=(3, 6, 6),
)


def write(path, config=SMALL, seed=0, certainty=0.0):
    """Boxes come first of the two outputs, as (y, x, height, width); `certainty` is added to all logits."""
    random = np.random.default_rng(seed)
    graph = Graph(1, config.image_size, config.image_size, 3)

    def conv(x, outputs, size, plus=0.0, **options):
        inputs = 1 if options.get("depthwise") else graph.shape(x)[-1]
        shape = (1, size, size, outputs) if options.get("depthwise") else (outputs, size, size, inputs)
        weight = random.normal(size=shape) * (2 / (size * size * inputs)) ** 0.5
        return graph.conv(x, weight, random.normal(size=outputs) * 0.1 + plus, **options)

    heads = []

    def predict(x):
        anchors = config.anchors[len(heads)]
        parts = []
        for values, plus in ((4, 0.0), (config.num_classes, certainty)):
            found = conv(x, values * anchors, 1, plus, activation=NO_ACTIVATION)
            parts.append(graph.reshape(found, 1, graph.shape(found)[1] ** 2 * anchors, values))
        heads.append(parts)

    x = conv(graph.input, config.stem, 3, stride=2)
    for i, (_, outputs, stride) in enumerate(config.blocks, 1):
        inner = conv(x, config.expanded(i), 1) if config.expanded(i) else x
        if i == config.taken_in:
            predict(inner)
        y = conv(inner, graph.shape(inner)[-1], 3, stride=stride, depthwise=True)
        y = conv(y, outputs, 1, activation=NO_ACTIVATION)
        fits = stride == 1 and graph.shape(x)[-1] == outputs
        x = graph.operator(ADD, [y, x], graph.shape(x), {0: ("b", NO_ACTIVATION)}) if fits else y
    x = conv(x, config.last, 1)
    predict(x)
    for inner, outer in zip(config.extra_inner, config.extra_outer, strict=True):
        x = conv(conv(x, inner, 1), outer, 3, stride=2)
        predict(x)
    graph.write(path, [graph.concatenate(parts) for parts in zip(*heads, strict=True)])
    return path
