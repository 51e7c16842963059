"""The peers of `benchmarks.run` do our work: the same losses, the same steps, the same answers, from the same weights."""

import functools

import jax
import numpy as np
import pytest

from benchmarks import peers
from benchmarks.speed.telling import Telling
from mlperf_jax import making, registry
from mlperf_jax.detection import mask_answers
from mlperf_jax.parallel import mesh
from mlperf_jax.planning import compare
from mlperf_jax.training.engine import Engine, named
from mlperf_jax.workload import TokenWorkload, TrainedWorkload

torch = pytest.importorskip("torch", reason="PyTorch is the peer")

STEPS = 3
# The minis, with fewer layers and examples where that leaves every kind of layer in.
SMALL = {
    "resnet50": ["model.stages=(1,1)", "batch_size=16", "schedule.warmup_epochs=0.01"],
    "mobilenet": ["batch_size=16", "model.blocks=((32,1),(64,2))", "schedule.warmup_epochs=0.01"],
    "shufflenet": ["batch_size=16", "model.repeats=(2,1)", "schedule.warmup_epochs=0.01"],
    "transformer": ["batch_size=4", "data.max_length=24", "model.num_layers=1", "decode.extra_length=8"],
    "gnmt": ["batch_size=4", "data.max_length=24", "model.width=32", "decode.extra_length=8"],
    "ssd_resnet34": ["batch_size=4"],
    "ssd_mobilenet": ["batch_size=4", "model.blocks=((16,2),(24,2))", "model.taken_after=(1,2)"],
    "unet3d": [
        "batch_size=2",
        "data.patch=(16,16,16)",
        "data.stride=(8,8,8)",
        "data.num_eval=3",
        "optimizer.epsilon=1e-2",
        "inference.batch_sizes=(1,3)",
    ],
    "dlrm": ["batch_size=64"],
    # Of gradients that are rounding, Adagrad's and Adam's first step would else be their sign.
    "retinanet": ["batch_size=4", "schedule.warmup_epochs=0.01", "optimizer.epsilon=2e-5"],
    "dlrm_dcnv2": ["batch_size=64", "optimizer.epsilon=1e-4"],
    "ncf": ["batch_size=64"],
    "deepspeech2": [
        "batch_size=4",
        "model.width=32",
        "data.num_train=40",
        "data.num_eval=20",
        "data.seconds=(3.5,)",
        "optimizer.epsilon=1e-2",
        "features.tempo=(1.0,1.0)",
        "features.pitch=(1.0,1.0)",
        "schedule.warmup_steps=0",
    ],
    "sentiment": [
        "batch_size=8",
        "model.dropout=0",
        "model.word_dropout=0",
        "data.num_train=80",
        "data.num_eval=40",
    ],
    # All examples there are: of 255 anchors 256 are drawn, of 24 boxes 50.
    "maskrcnn": [
        "batch_size=2",
        "data.shorter=32",
        "data.longest=32",
        "data.longer=(32,)",
        "proposals.train.count=16",
        "regions.count=50",
        "regions.share=0.5",
        "optimizer.epsilon=1e-4",
        "detection.score=0.0",
    ],
    "maskrcnn2go": [
        "batch_size=2",
        "data.shorter=32",
        "data.longest=32",
        "data.longer=(32,)",
        "model.stages=((1,8,1,1),(2,12,2,2),(2,16,1,2))",
        "anchor_sizes=(8,16,32)",
        "model.convs=1",
        "proposals.train.count=16",
        "regions.count=50",
        "regions.share=0.5",
        "optimizer.epsilon=1e-2",
        "schedule.warmup_steps=0",
        "detection.score=0.0",
    ],
    # In the first step of AdamW a gradient that is rounding would be its sign.
    "bert": ["batch_size=4", "model.num_layers=1", "schedule.warmup_steps=2", "optimizer.epsilon=1e-2"],
    "llama2_70b_lora": [
        "batch_size=4",
        "data.length=24",
        "loss_tile=24",
        "model.width=32",
        "model.mlp_width=48",
        "model.num_heads=4",
        "model.num_key_heads=2",
        "model.head_width=8",
        "model.num_layers=2",
        "model.low_rank=3",
        "model.low_rank_dropout=0.0",
        "optimizer.epsilon=1e-2",
    ],
    "llama31_8b": ["batch_size=4", "model.num_layers=2", "schedule.warmup_steps=2", "optimizer.epsilon=1e-2"],
    "gpt_oss_20b": [
        "batch_size=4",
        "model.num_layers=3",
        "schedule.warmup_steps=2",
        "optimizer.epsilon=1e-2",
    ],
    # Noise, masks and changes of speed are random.
    "rnnt": [
        "batch_size=4",
        "features.dither=0.0",
        "speeds=(1.0,1.0)",
        "model.encoder_width=16",
        "model.prediction_width=8",
        "model.joint_width=12",
        "data.seconds=(1.2,3.5)",
        "data.num_train=64",
        "data.num_eval=8",
        "decode.most=12",
        "optimizer.epsilon=1e-3",
    ],
    "bert_qa": ["batch_size=4", "model.num_layers=1", "optimizer.epsilon=1e-2", "data.num_train=64"],
    "minigo": ["batch_size=16", "model.trunk_layers=1", "self_play.lanes=16", "self_play.rows=8"],
}
SAMPLES = 3


def small(name):
    overrides = [f"--config.{change}" for change in SMALL.get(name, [])]
    return making.choose(name, "mini", "cpu", overrides, kind=TrainedWorkload).make(synthetic=True)


def drawn(struct):
    """A state of these shapes: weights and statistics from which mistakes would show, no optimizer's past."""
    random = np.random.default_rng(4)

    def draw(path, leaf):
        names = [str(getattr(part, "key", getattr(part, "name", ""))) for part in path]
        if names[0] == "played" and names[1] == "window":
            if names[2] == "planes":
                return random.integers(0, 256, leaf.shape).astype(leaf.dtype)
            if names[2] == "outcome":
                return random.choice([-1, 1], leaf.shape).astype(leaf.dtype)
            return random.dirichlet(np.ones(leaf.shape[-1]), leaf.shape[:-1]).astype(leaf.dtype)
        if names[0] not in ("params", "model_state"):
            return np.zeros(leaf.shape, leaf.dtype)
        if names[-1] in ("scale", "var"):
            return random.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        scale = 0.1 if leaf.ndim == 1 else np.prod(leaf.shape[:-1]) ** -0.5
        return (random.normal(size=leaf.shape) * scale).astype(leaf.dtype)

    state = jax.tree_util.tree_map_with_path(draw, struct)
    return state | ({"ema": state["params"]} if "ema" in state else {})  # where the average begins


def nested(tree):
    """Named tuples and lists of a state as the dicts in which it is handed over; numbers as texts."""
    if hasattr(tree, "_asdict"):
        tree = tree._asdict()
    return {str(k): nested(v) for k, v in tree.items()} if isinstance(tree, dict) else np.asarray(tree)


@functools.cache
def ours(name):
    """Our workload, its first state and batch, and what `STEPS` steps of it come to."""
    work = small(name)
    engine = Engine(work, mesh.single_device_layout())
    first = drawn(engine.state) | jax.device_get(engine.frozen(0))
    found = compare.first_batch(engine, 0)
    engine.compile(named("train_step", found.bucket))
    state = jax.device_put(first, jax.tree.map(lambda x: x.sharding, engine.state))
    batch = engine.place(found.batch, engine.buckets[found.bucket])
    losses = []
    for _ in range(STEPS):
        state, metrics = engine.train(state, batch, steps=1, bucket=found.bucket)
        losses.append(float(metrics["loss"]))
    return work, first, found.batch, losses, jax.device_get({k: state[k] for k in ("params", "model_state")})


def in_torch(name):
    work, first, *_ = ours(name)
    return peers.find(name)(work, nested({k: v for k, v in first.items() if k != "opt_state"}))


def test_every_trained_workload_has_a_peer():
    found = ((name, registry.find(name, registry.Workload)) for name in registry.names())
    assert peers.names() == [name for name, cls in found if issubclass(cls, TrainedWorkload)]


@pytest.mark.parametrize("name", peers.names())
def test_losses_and_steps_are_ours(name):
    """Three steps of the schedule, whose first changes nothing in some: gradients and the optimizer take part."""
    work, first, batch, losses, after = ours(name)
    peer = in_torch(name)
    peer.model.train()
    before = {n: p.detach().clone() for n, p in peer.model.named_parameters()}
    tensors = {key: torch.from_numpy(np.array(x)) for key, x in batch.items()}
    for step in range(STEPS):
        if name == "minigo":
            key = jax.random.fold_in(jax.random.key(0), step)
            tensors["turned"] = torch.from_numpy(
                np.array(jax.random.randint(key, batch["index"].shape, 0, 8))
            )
        loss = float(peer.train_step(tensors, float(work.schedule()(step))))
        assert abs(loss - losses[step]) <= 1e-4 * abs(losses[step]), step
    holder = peers.find(name)(work, nested({k: first[k] for k in first if k != "opt_state"} | after))
    changes = wrong = 0.0
    for (n, theirs), our in zip(peer.model.named_parameters(), holder.model.parameters(), strict=True):
        changes += float((theirs - before[n]).detach().double().square().sum())
        wrong += float((theirs - our).detach().double().square().sum())
    assert changes > 0 and (wrong / changes) ** 0.5 < 1e-4
    for theirs, our in zip(peer.model.buffers(), holder.model.buffers(), strict=True):
        if theirs.is_floating_point():
            torch.testing.assert_close(theirs, our, rtol=1e-3, atol=1e-4)


BY_TOKEN = [name for name in peers.names() if issubclass(registry.find(name, TrainedWorkload), TokenWorkload)]


@pytest.mark.parametrize("name", BY_TOKEN)
def test_texts_go_on_as_ours(name):
    """Through the engine's pages and slots here, by PyTorch's plain loop there; one text alone, and one in every slot."""
    telling, peer = told(name), in_torch(name)
    peer.model.eval()
    for texts in (1, telling.slots):
        expected = telling.answer(texts)
        asked = {key: torch.from_numpy(x) for key, x in telling.asked(texts).items()}
        np.testing.assert_array_equal(peer.predict(asked).numpy(), expected)
    assert expected.shape == (telling.slots, telling.count) and len(np.unique(expected)) > 2 * telling.slots


def told(name):
    work, first, *_ = ours(name)
    telling = Telling(work, jax.device_put(work.served_state(first)), mesh.single_device_layout(), seed=3)
    telling.compile()
    return telling


@pytest.mark.parametrize("name", [name for name in peers.names() if name not in BY_TOKEN])
def test_answers_are_ours(name):
    work, first, *_ = ours(name)
    random = np.random.default_rng(2)
    if name == "minigo":  # samples are made by games, which take long
        shape, _ = work.sample_spec()["planes"]
        samples = {"planes": random.integers(0, 2, (SAMPLES, *shape)).astype(bool)}
    else:
        samples = work.read_samples(np.arange(SAMPLES))
    with jax.default_matmul_precision("highest"):
        expected = np.asarray(jax.jit(work.predict)(work.served_state(first), samples))
    peer = in_torch(name)
    peer.model.eval()
    found = peer.predict({key: torch.from_numpy(np.array(x)) for key, x in samples.items()}).numpy()
    assert found.shape == expected.shape
    if name == "maskrcnn2go":  # places are numbers as bytes; they follow numbers and masks
        beyond = work.row_bytes_beyond_mask
        places, other = (np.ascontiguousarray(x[..., -beyond:]).view("<f4") for x in (expected, found))
        assert (
            np.isclose(places, other, atol=1e-3).mean() > 0.99
        )  # of all but equal cells either may be the largest
        expected, found = expected[..., :-beyond], found[..., :-beyond]
    if name.startswith("maskrcnn"):  # bytes: numbers and masks of detections
        for ours_, theirs in zip(expected, found, strict=True):
            (rows, masks), (their_rows, their_masks) = map(mask_answers.unpacked, (ours_, theirs))
            np.testing.assert_allclose(their_rows, rows, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(their_masks, masks, atol=1)
        return
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
