"""BERT: sizes, parity with PyTorch, and packed rows that are as good as sequences apart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.parallel.layout import STRATEGIES
from mlperf_jax.parallel.mesh import make_layout
from mlperf_jax.precision import POLICIES
from mlperf_jax.weights import bert as weights
from models.bert import BertConfig, PretrainedBert, SpanBert, train_flops_per_row
from tests.models.packed_sentences import products

SIZES = dict(vocab_size=23, width=16, mlp_width=24, num_heads=4, num_layers=2, num_positions=12, gelu="erf")
SMALL = BertConfig(**SIZES)
LENGTHS = np.array([12, 3, 7, 5])


def graph_of(kind=PretrainedBert, config=SMALL, precision="float32"):
    model = nnx.eval_shape(lambda: kind(config, policy=POLICIES[precision], rngs=nnx.Rngs(0)))
    return nnx.split(model, nnx.Param)[0]


@functools.cache
def parameters(head="pretraining", dtype="float32"):
    """Random ones, norms and biases too, as our tree."""
    random = np.random.default_rng(1)
    kind = {"pretraining": PretrainedBert, "span": SpanBert}[head]
    model = nnx.eval_shape(lambda: kind(SMALL, policy=POLICIES["float32"], rngs=nnx.Rngs(0)))
    shapes = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return jax.tree.map(lambda x: (random.normal(size=x.shape) * 0.3).astype(dtype), shapes)


def sequences(seed=0):
    """One a row, padded: tokens, which are there, types, two positions to be told, and what is to be told."""
    random = np.random.default_rng(seed)
    seen = np.arange(12) < LENGTHS[:, None]
    tokens = np.where(seen, random.integers(1, 23, size=seen.shape), 0)
    types = np.where(seen, np.arange(12) >= LENGTHS[:, None] // 2, 0)
    masked = random.integers(LENGTHS[:, None], size=(4, 2))
    return (
        tokens,
        seen,
        types.astype(int),
        masked,
        random.integers(23, size=(4, 2)),
        random.integers(2, size=4),
    )


def log_likelihood(logits, labels):
    return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]


@functools.cache
def all_of(graph):
    """Logits, losses' sum and gradients; what to tell and next sentences where `weight` is 1."""

    def loss(params, inputs, words, follows, weight):
        told, next_sentence = nnx.merge(graph, params)(**inputs)
        total = (log_likelihood(told, words) * weight["words"]).sum()
        total += (log_likelihood(next_sentence, follows) * weight["follows"]).sum()
        return -total, (told, next_sentence)

    def run(*args):
        (_, logits), grads = jax.value_and_grad(loss, has_aux=True)(*args)
        return logits, grads

    return jax.jit(run)


def apart(seed=0):
    tokens, seen, types, masked, words, follows = sequences(seed)
    inputs = dict(
        tokens=tokens, segment=seen * 1, token_type=types, masked=masked, first=np.zeros((4, 1), int)
    )
    return inputs, words, follows[:, None], {"words": np.ones((4, 2)), "follows": np.ones((4, 1))}


def packed(seed=0):
    """The same four in three rows, of which the second holds two."""
    tokens, _, types, masked, words, follows = sequences(seed)
    rows = [[0], [1, 2], [3]]
    inputs = {name: np.zeros((3, 12), int) for name in ("tokens", "segment", "token_type")}
    inputs |= {"masked": np.zeros((3, 4), int), "first": np.zeros((3, 2), int)}
    told, follow = np.zeros((3, 4), int), np.zeros((3, 2), int)
    weight = {"words": np.zeros((3, 4)), "follows": np.zeros((3, 2))}
    for row, members in enumerate(rows):
        at = 0
        for n, member in enumerate(members):
            here = slice(at, at + LENGTHS[member])
            inputs["tokens"][row, here] = tokens[member, : LENGTHS[member]]
            inputs["token_type"][row, here] = types[member, : LENGTHS[member]]
            inputs["segment"][row, here] = n + 1
            inputs["masked"][row, 2 * n : 2 * n + 2] = at + masked[member]
            inputs["first"][row, n] = at
            told[row, 2 * n : 2 * n + 2], follow[row, n] = words[member], follows[member]
            weight["words"][row, 2 * n : 2 * n + 2] = weight["follows"][row, n] = 1
            at += LENGTHS[member]
    return inputs, told, follow, weight


@functools.cache
def large():
    model = nnx.eval_shape(
        lambda: PretrainedBert(BertConfig.large(), policy=POLICIES["float32"], rngs=nnx.Rngs(0))
    )
    return nnx.state(model, nnx.Param)


def test_the_large_model_has_the_references_parameters():
    # By hand: tables; four square products with biases; feed-forward; a scale and a bias for every norm.
    norm, square = 2 * 1024, 1024**2 + 1024
    embeddings = (30522 + 512 + 2) * 1024 + norm
    layer = 4 * square + 2 * 1024 * 4096 + 4096 + 1024 + 2 * norm
    heads = square + (2 * 1024 + 2) + (square + norm + 30522)
    expected = embeddings + 24 * layer + heads
    assert sum(x.size for x in jax.tree.leaves(large())) == expected == 336_226_108


def judged(gelu):
    """PyTorch's model, and our parameters by its names."""
    from tests.models.torch_bert import TorchBert, torch

    torch.manual_seed(1)
    judge = TorchBert(BertConfig(**SIZES | {"gelu": gelu}))
    return torch, judge


def ours_of(tensors, head):
    found = weights.from_published(tensors, SMALL, head=head)["params"]
    return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
def test_logits_and_gradients_of_pretraining_are_pytorchs(gelu):
    pytest.importorskip("torch", reason="PyTorch judges ours")
    torch, judge = judged(gelu)
    tokens, seen, types, masked, words, follows = sequences()
    x = judge.encode(*map(torch.tensor, (tokens, seen, types)))
    told, next_sentence = judge.pretraining(x, torch.tensor(masked))
    loss = torch.nn.functional.cross_entropy(
        told.flatten(0, 1), torch.tensor(words).flatten(), reduction="sum"
    )
    loss += torch.nn.functional.cross_entropy(next_sentence, torch.tensor(follows), reduction="sum")
    loss.backward()
    named = {name: p for name, p in judge.named_parameters() if not name.startswith("qa_outputs")}
    params = ours_of({name: p.detach().numpy() for name, p in named.items()}, "pretraining")
    graph = graph_of(config=BertConfig(**SIZES | {"gelu": gelu}))
    with jax.default_matmul_precision("highest"):
        logits, grads = all_of(graph)(params, *apart())
    for ours, theirs in zip(logits, (told, next_sentence[:, None]), strict=True):
        theirs = theirs.detach().numpy()
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
    expected = ours_of({name: p.grad.numpy() for name, p in named.items()}, "pretraining")
    # A bias of keys moves all scores of a query alike, so that its gradient is rounding: judged by its kernel's.
    scale = jax.tree.map(lambda g: np.abs(g).max(), expected)
    key = scale["encoder"]["layers"]["attention"]["key"]
    key["bias"] = key["kernel"]
    for ours, theirs, most in zip(*map(jax.tree.leaves, (grads, expected, scale)), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-4 * most


def test_spans_are_pytorchs():
    pytest.importorskip("torch", reason="PyTorch judges ours")
    torch, judge = judged("erf")
    tokens, seen, types, *_ = sequences()
    with torch.no_grad():
        expected = judge.spans(judge.encode(*map(torch.tensor, (tokens, seen, types)))).numpy()[seen]
    tensors = {name: p.detach().numpy() for name, p in judge.named_parameters() if not name.startswith("cls")}
    params = ours_of(tensors, "span")
    graph = graph_of(SpanBert)
    with jax.default_matmul_precision("highest"):
        logits = jax.jit(lambda params: nnx.merge(graph, params)(tokens, seen * 1, types))(params)
    assert np.abs(np.asarray(logits)[seen] - expected).max() <= 1e-4 * np.abs(expected).max()


def test_packed_rows_are_as_good_as_sequences_apart():
    """Logits and gradients in float64: neither attention nor loss knows who else is in a row."""
    with jax.enable_x64(True):
        run = all_of(graph_of(precision="float64"))
        params = parameters(dtype="float64")
        (words, follows), grads = run(params, *apart())
        (packed_words, packed_follows), packed_grads = run(params, *packed())
    weight = packed()[3]
    np.testing.assert_allclose(packed_words[weight["words"] > 0], words.reshape(8, -1), rtol=1e-10)
    np.testing.assert_allclose(packed_follows[weight["follows"] > 0], follows[:, 0], rtol=1e-10)
    for a, b in zip(jax.tree.leaves(packed_grads), jax.tree.leaves(grads), strict=True):
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_gradients_are_those_of_differences():
    """In float64, along three random directions."""
    with jax.enable_x64(True):
        graph, params, (inputs, words, follows, weight) = (
            graph_of(precision="float64"),
            parameters(dtype="float64"),
            apart(3),
        )

        def loss(params):
            told, next_sentence = nnx.merge(graph, params)(**inputs)
            total = (log_likelihood(told, words) * weight["words"]).sum()
            return -total - log_likelihood(next_sentence, follows).sum()

        loss, grads = jax.jit(loss), jax.jit(jax.grad(loss))(params)
        random = np.random.default_rng(0)
        for _ in range(3):
            direction = jax.tree.map(lambda x: random.normal(size=x.shape), params)
            ahead, behind = (
                loss(jax.tree.map(lambda x, d, step=step: x + step * d, params, direction))
                for step in (1e-6, -1e-6)
            )
            along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), grads, direction)))
            np.testing.assert_allclose((ahead - behind) / 2e-6, along, rtol=1e-6)


def test_what_layouts_split_of_the_large_model():
    """Every product's parameters and the words' table over two devices, and all else that fsdp can."""
    layout = make_layout(STRATEGIES["tp"], {"data": 4, "model": 2})
    split = 0
    for _, variable in nnx.to_flat_state(large()):
        shape = variable.get_value().shape
        spec = layout.param_sharding(shape, variable.get_metadata()["axes"]).spec
        split += np.prod(shape) * ("model" in spec)
    assert split > 0.98 * 336_226_108


def test_remat_and_dropout():
    """Rematerialisation changes no gradient; dropout follows the key."""
    with jax.enable_x64(True):
        inputs, params = apart()[0], parameters(dtype="float64")

        def gradient(remat):
            graph = graph_of(config=BertConfig(**SIZES, remat=remat), precision="float64")

            def total(params, key):
                return jnp.square(nnx.merge(graph, params)(**inputs, key=key)[0]).sum()

            return jax.jit(jax.grad(total))

        remat = gradient("save_nothing")
        one, other = (jax.tree.leaves(remat(params, jax.random.key(n))) for n in (1, 2))
        expected = jax.tree.leaves(gradient("none")(params, jax.random.key(1)))
    for a, b in zip(one, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
    assert any((a != b).any() for a, b in zip(one, other, strict=True))


def test_dtypes_of_the_mixed_policy():
    graph = graph_of(precision="bfloat16")
    out = jax.eval_shape(lambda params: nnx.merge(graph, params)(**apart()[0]), parameters())
    assert {x.dtype for x in out} == {np.dtype(np.float32)}
    assert out[0].shape == (4, 2, 23) and out[1].shape == (4, 1, 2)


def test_flops_are_those_of_the_products():
    """Against jax's own count of a forward pass, less types and next sentences, which count nothing."""
    config = BertConfig(**SIZES | {"num_layers": 1, "num_positions": 16})
    graph = graph_of(config=config)
    params = jax.tree.map(
        lambda x: x[:1] if x.ndim and x.shape[0] == 2 else x, parameters()["encoder"]["layers"]
    )
    params = {**parameters(), "encoder": {**parameters()["encoder"], "layers": params}}
    params["encoder"]["position_embedding"] = np.zeros((16, 16), np.float32)
    inputs = {name: np.ones((1, 16), int) for name in ("tokens", "segment", "token_type")}
    inputs |= {"masked": np.ones((1, 3), int), "first": np.zeros((1, 1), int)}
    jaxpr = jax.make_jaxpr(lambda p: nnx.merge(graph, p)(**inputs))(params)
    others = 2 * 16 * 2 * 16 + 2 * 16 * 16 + 2 * 16 * 2
    assert train_flops_per_row(config, 16, 3) == 3 * (products(jaxpr.jaxpr) - others)


def test_configs_and_rows_that_cannot_be():
    with pytest.raises(ValueError, match="gelu 'relu' is none of tanh, erf"):
        BertConfig(gelu="relu")
    with pytest.raises(ValueError, match="3 heads do not divide a width of 16"):
        BertConfig(**SIZES | {"num_heads": 3})
    inputs = {name: np.pad(value, ((0, 0), (0, 1))) for name, value in apart()[0].items()}
    with pytest.raises(ValueError, match="a row has 13 tokens, of 12 positions"):
        jax.eval_shape(lambda params: nnx.merge(graph_of(), params)(**inputs), parameters())


def test_first_values_may_look_beside():
    """Two heads of the first layer: most of what a place looks at is the one before it, or after."""
    config = BertConfig(
        **SIZES | dict(vocab_size=500, width=128, num_layers=1, num_positions=64, first_values="beside"),
        initializer_range=0.05,
    )
    model = PretrainedBert(config, policy=POLICIES["float32"], rngs=nnx.Rngs(1))
    encoder = model.encoder
    tokens = np.random.default_rng(0).integers(500, size=(4, 64))
    x = encoder.embedding[...][tokens] + encoder.position_embedding[...] + encoder.type_embedding[...][0]
    x = encoder.embedding_norm(x)
    kernels = (getattr(encoder.layers.attention, name).kernel[...][0] for name in ("query", "key"))
    q, k = (jnp.einsum("bld,dhk->bhlk", x, kernel) for kernel in kernels)
    weights = np.asarray(jax.nn.softmax(jnp.einsum("bhik,bhjk->bhij", q, k) / np.sqrt(32), -1))
    place = np.arange(1, 63)
    assert weights[:, 0, place, place - 1].min() > 0.9 and weights[:, 1, place, place + 1].min() > 0.9
    assert weights[:, 2].max() < 0.5
    assert model.words(jnp.ones((1, 1, 128))).std() < 1  # logits are not wider for the wider tables
    with pytest.raises(ValueError, match="at least 32 wide each"):
        BertConfig(**SIZES, first_values="beside")
