"""ResNet-34 and whole detectors under their published names; logits against PyTorch are in models/test_ssd."""

import re
from importlib import resources

import jax
import numpy as np
import pytest

from configs.ssd_resnet34 import get_config
from mlperf_jax.errors import UserError
from mlperf_jax.weights.ssd import backbone, from_reference, logged_names
from models.ssd import SSDConfig

CONFIG = SSDConfig(
    image_size=67,
    num_classes=4,
    width=4,
    stages=(2, 1, 1),
    extra_inner=(6, 5),
    extra_outer=(10, 7),
    extra_strides=(2, 1),
    extra_padding=(1, 0),
    anchors=(4, 6, 4),
)


def norm(name, features):
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{name}.{kind}": (features,) if kind != "num_batches_tracked" else () for kind in kinds}


def torchvision_shapes(config):
    """Name -> shape of a classifier, its last stage and head included."""
    shapes = {"conv1.weight": (config.width, 3, 7, 7)} | norm("bn1", config.width)
    features = config.width
    for stage, count in enumerate([*config.stages, 1]):
        for block in range(count):
            name, width = f"layer{stage + 1}.{block}", config.width << stage
            shapes |= {f"{name}.conv1.weight": (width, features, 3, 3)} | norm(f"{name}.bn1", width)
            shapes |= {f"{name}.conv2.weight": (width, width, 3, 3)} | norm(f"{name}.bn2", width)
            if features != width:
                shapes |= {f"{name}.downsample.0.weight": (width, features, 1, 1)}
                shapes |= norm(f"{name}.downsample.1", width)
            features = width
    return shapes | {"fc.weight": (10, features), "fc.bias": (10,)}


def reference_shapes(config):
    """The same as a detector's backbone, and the rest of a detector."""
    renamed = {
        r"^conv1": "model.layer1.0",
        r"^bn1": "model.layer1.1",
        r"^layer1": "model.layer1.4",
        r"^layer2": "model.layer1.5",
        r"^layer3": "model.layer2.0",
    }
    shapes = {}
    for name, shape in torchvision_shapes(config).items():
        for pattern, replacement in renamed.items():
            if re.search(pattern, name):
                shapes[re.sub(pattern, replacement, name)] = shape
    channels = config.map_channels
    for i, (inner, outer) in enumerate(zip(config.extra_inner, config.extra_outer, strict=True)):
        shapes |= {f"additional_blocks.{i}.0.weight": (inner, channels[i], 1, 1)}
        shapes |= {f"additional_blocks.{i}.0.bias": (inner,)}
        shapes |= {f"additional_blocks.{i}.2.weight": (outer, inner, 3, 3)}
        shapes |= {f"additional_blocks.{i}.2.bias": (outer,)}
    for i, (features, anchors) in enumerate(zip(channels, config.anchors, strict=True)):
        for head, values in (("loc", 4), ("conf", config.num_classes)):
            shapes |= {f"{head}.{i}.weight": (values * anchors, features, 3, 3)}
            shapes |= {f"{head}.{i}.bias": (values * anchors,)}
    return shapes


def drawn(shapes):
    random = np.random.default_rng(0)
    return {name: np.asarray(random.normal(size=shape), np.float32) for name, shape in shapes.items()}


def test_a_backbone_is_a_classifiers_first_stages():
    tensors = drawn(torchvision_shapes(CONFIG))
    found = backbone(tensors, CONFIG)
    params, stats = found["params"], found["model_state"]
    block = params["blocks"]["stage2_block1"]
    np.testing.assert_array_equal(
        block["conv1"]["kernel"], tensors["layer2.0.conv1.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(
        block["conv_shortcut"]["kernel"][0, 0], tensors["layer2.0.downsample.0.weight"][:, :, 0, 0].T
    )
    np.testing.assert_array_equal(stats["norm"]["var"], tensors["bn1.running_var"])
    assert "conv_shortcut" not in params["blocks"]["stage1_block1"] and len(params["blocks"]) == 4


@pytest.mark.parametrize("prefix", ["module.", "", "model._orig_mod.", "_orig_mod.module.model."])
def test_a_whole_detector_has_the_same_backbone(prefix):
    tensors = drawn(reference_shapes(CONFIG))
    wrapped = {f"{prefix}{name}": array for name, array in tensors.items()}
    found = from_reference(wrapped, CONFIG)
    assert sum(a.size for a in jax.tree.leaves(found["params"])) == sum(
        a.size for name, a in tensors.items() if name.endswith(("weight", "bias"))
    )
    head = found["params"]["heads"]["map2"]["classes"]
    np.testing.assert_array_equal(head["kernel"], tensors["conf.1.weight"].transpose(2, 3, 1, 0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loc.0.bias": None}, "no loc.0.bias"),
        ({"conf.1.weight": (5, 10, 3, 3)}, "conf.1.weight has shape"),
        ({"conf.3.weight": (24, 7, 3, 3)}, "have conf.3.weight, which this model does not"),
    ],
)
def test_weights_of_another_detector_are_refused(change, said):
    shapes = reference_shapes(CONFIG) | change
    tensors = drawn({name: shape for name, shape in shapes.items() if shape is not None})
    with pytest.raises(UserError, match=said):
        from_reference(tensors, CONFIG)


def test_a_detector_with_torchvisions_names_in_a_wrapper():
    rest = {name: shape for name, shape in reference_shapes(CONFIG).items() if not name.startswith("model.")}
    stages = {
        name: shape
        for name, shape in torchvision_shapes(CONFIG).items()
        if not name.startswith(("layer4", "fc"))
    }
    tensors = drawn(stages | rest)
    found = from_reference({f"model.{name}": array for name, array in tensors.items()}, CONFIG)
    np.testing.assert_array_equal(
        found["params"]["backbone"]["blocks"]["stage1_block1"]["conv1"]["kernel"],
        tensors["layer1.0.conv1.weight"].transpose(2, 3, 1, 0),
    )


def test_weights_of_a_bottleneck_resnet_are_refused():
    tensors = drawn(torchvision_shapes(CONFIG)) | {"layer1.0.conv1.weight": np.zeros((4, 4, 1, 1))}
    with pytest.raises(UserError, match="layer1.0.conv1.weight has shape"):
        backbone(tensors, CONFIG)


def test_the_log_names_what_the_checker_asks_for():
    rules = resources.files("mlperf_logging.compliance_checker") / "training_1.1.0" / "closed_ssd.yaml"
    asked = re.findall(r'"(ssd0_\w+)"', rules.read_text())
    config = SSDConfig(**get_config("closed").model.to_dict())
    assert len(asked) == 119 and logged_names(config) == asked
