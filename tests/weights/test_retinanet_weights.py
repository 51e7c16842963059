"""ResNeXt-50 and whole detectors under their published names; predictions against PyTorch are in models/test_retinanet."""

import jax
import numpy as np
import pytest

from configs.retinanet import get_config
from mlperf_jax.errors import UserError
from mlperf_jax.weights import files
from mlperf_jax.weights.retinanet import backbone, from_reference
from models.retinanet import RetinaNetConfig
from tests.weights.test_ssd_weights import drawn, norm

CONFIG = RetinaNetConfig(
    image_size=68, num_classes=3, width=4, stages=(2, 1, 1), groups=2, channels=6, tower=2, beyond=2
)


def trunk_shapes(config):
    """Name -> shape of a classifier without its head, by torchvision's names."""
    shapes = {"conv1.weight": (config.width, 3, 7, 7)} | norm("bn1", config.width)
    features = config.width
    for stage, count in enumerate(config.stages):
        inner, outputs = config.inner * config.width << stage, 4 * config.width << stage
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            shapes |= {f"{name}.conv1.weight": (inner, features, 1, 1)} | norm(f"{name}.bn1", inner)
            shapes |= {f"{name}.conv2.weight": (inner, inner // config.groups, 3, 3)} | norm(
                f"{name}.bn2", inner
            )
            shapes |= {f"{name}.conv3.weight": (outputs, inner, 1, 1)} | norm(f"{name}.bn3", outputs)
            if not block:
                shapes |= {f"{name}.downsample.0.weight": (outputs, features, 1, 1)}
                shapes |= norm(f"{name}.downsample.1", outputs)
            features = outputs
    return shapes


def torchvision_shapes(config):
    features = 4 * config.width << len(config.stages) - 1
    return trunk_shapes(config) | {"fc.weight": (10, features), "fc.bias": (10,)}


def reference_shapes(config):
    """The same as a detector's trunk, and the rest of a detector."""

    def conv(name, size, features_in, features_out):
        return {f"{name}.weight": (features_out, features_in, size, size), f"{name}.bias": (features_out,)}

    shapes = {f"backbone.body.{name}": shape for name, shape in trunk_shapes(config).items()}
    channels, fpn = config.channels, "backbone.fpn"
    for i, features in enumerate(config.map_channels):
        shapes |= conv(f"{fpn}.inner_blocks.{i}", 1, features, channels)
        shapes |= conv(f"{fpn}.layer_blocks.{i}", 3, channels, channels)
    for i in range(config.beyond):
        shapes |= conv(f"{fpn}.extra_blocks.p{6 + i}", 3, channels, channels)
    heads = (("classification_head", "cls_logits", config.num_classes), ("regression_head", "bbox_reg", 4))
    for name, last, values in heads:
        for i in range(config.tower):
            shapes |= conv(f"head.{name}.conv.{2 * i}", 3, channels, channels)
        shapes |= conv(f"head.{name}.{last}", 3, channels, 9 * values)
    return shapes


def closed():
    return RetinaNetConfig(**get_config("closed").model.to_dict())


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_the_published_files_fill_the_model():
    zeros = {name: np.zeros(shape, np.float32) for name, shape in reference_shapes(closed()).items()}
    state = from_reference(zeros, closed())
    assert count(state["params"]) == 37_128_876 and count(state["model_state"]) == 68_224
    zeros = {name: np.zeros(shape, np.float32) for name, shape in torchvision_shapes(closed()).items()}
    state = backbone(zeros, closed())
    assert count(state["params"]) == 22_979_904  # ResNeXt-50's 25,028,904 without its classifier


def test_names_of_newer_torchvision_and_of_wrappers_say_the_same():
    tensors = drawn(reference_shapes(CONFIG))
    expected = from_reference(tensors, CONFIG)
    newer = {}
    for name, array in tensors.items():
        *parts, kind = name.split(".")
        if "inner_blocks" in name or "layer_blocks" in name:
            parts.append("0")
        elif "conv" in parts[-2:-1] and parts[0] == "head":
            parts[-1:] = [str(int(parts[-1]) // 2), "0"]
        newer[".".join(["module", *parts, kind])] = array
    assert newer.keys() != tensors.keys()
    found = from_reference(newer, CONFIG)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_norms_that_were_folded_into_convolutions_only_add():
    """As exporters to ONNX leave them."""
    tensors = drawn(reference_shapes(CONFIG))
    folded = {
        name: array for name, array in tensors.items() if not (".bn" in name or ".downsample.1." in name)
    }
    for name in list(folded):
        if name.startswith("backbone.body.") and name.endswith(".weight"):
            folded[name.removesuffix("weight") + "bias"] = np.full(len(folded[name]), 0.5, np.float32)
    state = from_reference(folded, CONFIG)
    ours = state["params"]["backbone"]["blocks"]["stage2_block1"]["norm2"]
    assert (ours["scale"] == 1).all() and (ours["bias"] == 0.5).all()


def test_onnx_as_mlperf_inference_exports_it(tmp_path):
    """Frozen norms are a product and a sum with constants that have no names; all else is named as in PyTorch."""
    onnx = pytest.importorskip("onnx", reason="writes the file")
    tensors = drawn(reference_shapes(CONFIG))
    nodes, constants = [], {}
    for name, array in tensors.items():
        if array.ndim != 4:
            continue
        constants[name] = array
        conv = name.removesuffix(".weight")
        biases = [f"{conv}.bias"] if f"{conv}.bias" in tensors else []
        constants |= {bias: tensors[bias] for bias in biases}
        nodes.append(
            onnx.helper.make_node("Conv", ["x", name, *biases], [f"{conv}.y"], name=f"Conv_{len(nodes)}")
        )
        norm_of = (
            conv.replace("downsample.0", "downsample.1")
            if "downsample" in conv
            else conv.replace("conv", "bn")
        )
        if not biases:
            tensors[f"{norm_of}.running_var"] = np.abs(tensors[f"{norm_of}.running_var"]) + 0.5
            weight, bias, mean, var = (
                tensors[f"{norm_of}.{kind}"] for kind in ("weight", "bias", "running_mean", "running_var")
            )
            scale = weight / np.sqrt(var + 1e-5)
            for operator, array_, given in (("Mul", scale, "y"), ("Add", bias - mean * scale, "z")):
                constants[f"onnx::{operator}_{len(nodes)}"] = array_.reshape(1, -1, 1, 1)
                inputs = [f"{conv}.{given}", f"onnx::{operator}_{len(nodes)}"]
                made = {"y": "z", "z": "out"}[given]
                nodes.append(
                    onnx.helper.make_node(
                        operator, inputs, [f"{conv}.{made}"], name=f"{operator}_{len(nodes)}"
                    )
                )
    held = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    path = tmp_path / "retinanet.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "graph", [], [], held)), path)
    found, expected = (from_reference(x, CONFIG) for x in (files.read_tensors(path), tensors))
    for entry in ("pyramid", "boxes", "classes"):
        jax.tree.map(np.testing.assert_array_equal, found["params"][entry], expected["params"][entry])
    blocks = [
        (state["params"]["backbone"]["blocks"], state["model_state"]["backbone"]["blocks"])
        for state in (found, expected)
    ]
    for block, norms in blocks[0][1].items():
        for name in norms:
            gain, shift = [], []
            for params, stats in blocks:
                p, s = params[block][name], stats[block][name]
                gain.append(np.asarray(p["scale"]) / np.sqrt(np.asarray(s["var"]) + 1e-5))
                shift.append(np.asarray(p["bias"]) - np.asarray(s["mean"]) * gain[-1])
            np.testing.assert_allclose(gain[0], gain[1], rtol=1e-5)
            np.testing.assert_allclose(shift[0], shift[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("head.regression_head.bbox_reg.bias"), "have no head.regression_head.bbox_reg.bias"),
        (lambda t: t.update({"head.mask.weight": np.zeros(3)}), "have head.mask.weight, which"),
        (lambda t: t.update({"backbone.body.layer2.0.conv2.weight": np.zeros((16, 16, 3, 3))}), "has shape"),
    ],
)
def test_weights_of_another_model_are_refused(change, said):
    tensors = drawn(reference_shapes(CONFIG))
    change(tensors)
    with pytest.raises(UserError, match=said):
        from_reference(tensors, CONFIG)
