"""Mask R-CNN under its published names; predictions against PyTorch are in models/test_maskrcnn."""

import re
import struct

import jax
import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.weights import files, maskrcnn
from mlperf_jax.weights.maskrcnn import backbone, from_reference
from tests.weights.test_retinanet_weights import trunk_shapes

torch = pytest.importorskip("torch", reason="the names are those of a PyTorch module")

from benchmarks.peers.maskrcnn import random_maskrcnn  # noqa: E402
from models.retinanet import RetinaNetConfig  # noqa: E402
from tests.models.test_maskrcnn import SMALL  # noqa: E402


def published():
    return {name: array.numpy() for name, array in random_maskrcnn(SMALL).state_dict().items()}


# How torchvision calls the same layers, in its older and its newer editions.
OLDER = (
    (r"backbone\.body\.stem\.", "backbone.body."),
    (r"fpn\.fpn_(inner|layer)(\d)", lambda m: f"fpn.{m[1]}_blocks.{int(m[2]) - 1}"),
    (r"roi_heads\.box\.feature_extractor", "roi_heads.box_head"),
    (r"roi_heads\.box\.predictor", "roi_heads.box_predictor"),
    (r"roi_heads\.mask\.feature_extractor", "roi_heads.mask_head"),
    (r"roi_heads\.mask\.predictor", "roi_heads.mask_predictor"),
)
NEWER = (
    *OLDER,
    (r"(fpn\.\w+_blocks\.\d)", r"\1.0"),
    (r"rpn\.head\.conv", "rpn.head.conv.0.0"),
    (r"mask_head\.mask_fcn(\d)", lambda m: f"mask_head.{int(m[1]) - 1}.0"),
)


@pytest.mark.parametrize("names", [OLDER, NEWER], ids=["older", "newer"])
def test_torchvisions_names_lead_to_the_same_layers(names):
    theirs = {}
    for name, array in published().items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        theirs[name] = array
    assert "backbone.fpn.inner_blocks.0" + (".0" if names is NEWER else "") + ".weight" in theirs
    expected, found = from_reference(published(), SMALL), from_reference(theirs, SMALL)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_classifier_becomes_the_trunk():
    random = np.random.default_rng(0)
    config = RetinaNetConfig(width=4, stages=(2, 1, 1), groups=1, inner=1)
    shapes = trunk_shapes(config) | {"fc.weight": (10, 64), "fc.bias": (10,)}
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    found = backbone(tensors, SMALL)
    whole = from_reference(published(), SMALL)
    assert jax.tree.map(np.shape, found["params"]) == jax.tree.map(np.shape, whole["params"]["backbone"])
    np.testing.assert_array_equal(
        found["params"]["stem"]["conv"]["kernel"], tensors["conv1.weight"].transpose(2, 3, 1, 0)
    )


def test_what_is_missing_or_left_over_is_named():
    tensors = published()
    del tensors["rpn.head.conv.weight"]
    with pytest.raises(UserError, match=r"no rpn\.head\.conv\.weight"):
        from_reference(tensors, SMALL)
    with pytest.raises(UserError, match=r"roi_heads\.keypoint"):
        from_reference(published() | {"roi_heads.keypoint.weight": np.zeros(3)}, SMALL)


def test_the_references_see_blue_first():
    state, changes = maskrcnn.published({f"module.{name}": x for name, x in published().items()}, SMALL)
    plain = from_reference(published(), SMALL)
    kernel = np.asarray(state["params"]["backbone"]["stem"]["conv"]["kernel"])
    expected = np.asarray(plain["params"]["backbone"]["stem"]["conv"]["kernel"])
    np.testing.assert_array_equal(kernel, expected[:, :, ::-1])
    assert changes["data.mean"][0] > changes["data.mean"][2] and changes["data.std"] == (1.0, 1.0, 1.0)
    theirs = {re.sub(r"body\.stem\.", "body.", name): array for name, array in published().items()}
    state, changes = maskrcnn.published(theirs, SMALL)
    np.testing.assert_array_equal(state["params"]["backbone"]["stem"]["conv"]["kernel"], expected)
    assert changes["model.strided"] == "3x3" and changes["data.std"][0] == pytest.approx(58.395)


# Detectron's files, as Python 2 wrote them.


def text(data):
    return b"T" + struct.pack("<i", len(data)) + data


def whole(number):
    return b"J" + struct.pack("<i", number)


def pickled(array, kind=b"f4", order=b"<", data=None):
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU" + bytes([len(kind)]) + kind + b"K\x00K\x01\x87R"
    dtype += b"(K\x03U\x01" + order + b"NNN" + whole(-1) + whole(-1) + b"K\x00tb"
    shape = b"(" + b"".join(map(whole, array.shape)) + b"t"
    data = array.tobytes() if data is None else data
    return made + b"(K\x01" + shape + dtype + b"\x89" + text(data) + b"tb"


def caffe2_file(path, blobs, **changes):
    entries = b"".join(text(n.encode()) + pickled(a, **changes.get(n, {})) for n, a in blobs.items())
    inner = b"}(" + entries + text(b"note") + text(b"words") + b"u"
    path.write_bytes(b"\x80\x02}(" + text(b"blobs") + inner + b"u.")
    return path


def caffe2_blobs():
    """MSRA's names, of SMALL's trunk."""
    random = np.random.default_rng(0)
    config = RetinaNetConfig(width=4, stages=(2, 1, 1), groups=1, inner=1)
    tensors = {
        name: random.normal(size=shape).astype(np.float32) for name, shape in trunk_shapes(config).items()
    }
    blobs = {}
    for name, array in tensors.items():
        layer, kind = name.rsplit(".", 1)
        if kind == "num_batches_tracked":
            continue
        if kind in ("running_mean", "running_var"):
            tensors[name] = np.full_like(array, kind == "running_var")
            continue
        ending = {"weight": "_bn_s", "bias": "_bn_b"}[kind] if array.ndim == 1 else "_w"
        if layer in ("conv1", "bn1"):
            blobs[("conv1" if array.ndim > 1 else "res_conv1") + ending] = array
            continue
        stage, block, part = re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", layer).groups()
        branch = "branch1" if "downsample" in part else f"branch2{'abc'[int(part[-1]) - 1]}"
        blobs[f"res{int(stage) + 1}_{block}_{branch}{ending}"] = array
    tensors["conv1.weight"] = tensors["conv1.weight"][:, ::-1]
    return blobs | {"fc1000_w": np.ones((2, 3), np.float32)}, tensors


def test_detectrons_backbone_is_read_and_turned(tmp_path):
    blobs, tensors = caffe2_blobs()
    read = files.read_tensors(caffe2_file(tmp_path / "R-50.pkl", blobs))
    assert read.keys() == blobs.keys()
    found, expected = backbone(read, SMALL), backbone(tensors, SMALL)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    del blobs["res3_0_branch1_w"]
    with pytest.raises(UserError, match=r"no layer2\.0\.downsample\.0\.weight"):
        backbone(blobs, SMALL)


def test_damaged_files_of_detectron_are_refused(tmp_path):
    good, path = np.ones((2, 3), np.float32), tmp_path / "a.pkl"
    for changes, reason in (
        ({"data": b"1234"}, "has not the bytes of an array"),
        ({"order": b">"}, "a kind that is not read"),
        ({"kind": b"O8"}, "a kind that is not read"),
    ):
        with pytest.raises(UserError, match=reason):
            files.read_tensors(caffe2_file(path, {"a": good}, a=changes))
    with pytest.raises(UserError, match="no arrays by name"):
        files.read_tensors(caffe2_file(path, {}))
    whole_file = caffe2_file(path, {"a": good}).read_bytes()
    for cut in range(3, len(whole_file), 7):
        path.write_bytes(whole_file[:cut])
        with pytest.raises(UserError, match="cannot be read as weights"):
            files.read_tensors(path)
    path.write_bytes(b"\x80\x02}cos\nsystem\nU\x02lsR.")
    with pytest.raises(UserError, match="asks for os.system"):
        files.read_tensors(path)
