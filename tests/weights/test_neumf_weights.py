"""The reference's checkpoint of NCF, by its names: imported, it scores as PyTorch does."""

import jax
import numpy as np
import pytest

from mlperf_jax.errors import UserError
from tests import toys
from tests.toys_ratings import ITEMS, USERS, SmallNCF

torch = pytest.importorskip("torch", reason="PyTorch is the judge")


def published():
    from benchmarks.peers.ncf import TorchNeuMF

    torch.manual_seed(3)
    shape = toys.make(SmallNCF).model_config
    theirs = TorchNeuMF(USERS, ITEMS, shape.factors, shape.layers)
    return theirs, {f"module.{name}": array.numpy() for name, array in theirs.state_dict().items()}


def test_imported_weights_score_as_in_torch():
    theirs, tensors = published()
    workload = toys.make(SmallNCF)
    state, changes = workload.import_weights(tensors)
    assert changes == {}
    random = np.random.default_rng(0)
    user, item = random.integers(USERS, size=20), random.integers(ITEMS, size=20)
    with jax.default_matmul_precision("highest"):
        ours = jax.jit(lambda s, u, i: workload.scores(workload.model(s), u, i))(state, user, item[:, None])
    expected = theirs(torch.tensor(user), torch.tensor(item)).detach()
    np.testing.assert_allclose(ours[:, 0], expected, rtol=1e-4, atol=1e-6)


def test_weights_of_other_sizes_are_refused():
    _, tensors = published()
    tensors["module.mf_item_embed.weight"] = tensors["module.mf_item_embed.weight"][1:]
    with pytest.raises(UserError, match="mf_item_embed"):
        toys.make(SmallNCF).import_weights(tensors)
