"""The config's numbers against the table of MLPerf's reference convergence points."""

import pytest

from configs.ssd_resnet34 import get_config
from mlperf_jax.config import resolve
from mlperf_jax.errors import UserError

EXAMPLES = 117_266

# Global batch: what rcps_ssd.json of round 1.0.0 says, whose rates and (below 300) warm-ups are the
# command's own: the rate for 32 examples, and epochs. Weight decay, boundaries, span, mean epochs.
POINTS = {
    1024: ((0.0025, 2.619685), 5e-4, (40, 50), 128, 50),
    1536: ((0.0025, 2.619685), 1.3e-4, (44, 55), 192, 55),
    2048: ((0.00457, 26), 4e-5, (60, 75), 16, 65.1),
    4096: ((0.0025, 40), 4e-5, (80, 100), 64, 87),
}


@pytest.mark.parametrize("batch", POINTS)
def test_reference_points_are_those_published(batch):
    (rate, warmup), decay, boundaries, span, epochs = POINTS[batch]
    config = resolve(get_config("closed"), [f"--config.reference_point={batch}"])
    assert config.batch_size == batch and batch % span == 0
    assert config.optimizer.base_lr == pytest.approx(rate * batch / 32)
    assert config.schedule.warmup_steps == pytest.approx(warmup * EXAMPLES / batch, abs=1)
    assert tuple(config.schedule.decay_epochs) == boundaries
    assert (config.optimizer.weight_decay, config.model.bn_span) == (decay, span)
    # Evaluated every five epochs as the rules of v1.1 say, past the point's own end and once after the decay.
    assert (config.eval_offset_epochs, config.eval_every_epochs) == (0, 5)
    assert config.max_epochs % 5 == 0 and config.max_epochs >= max(epochs, boundaries[1]) + 5


def test_closed_as_written_is_the_reference_point_of_its_batch():
    config = get_config("closed")
    assert resolve(config, ["--config.reference_point=1024"]).to_dict() | {"reference_point": 0} == (
        config.to_dict()
    )


def test_a_variant_that_is_not_there_is_named():
    with pytest.raises(UserError, match="no --config.variant=800; there is 1200"):
        resolve(get_config("closed"), ["--config.variant=800"])


def test_what_the_user_says_beside_a_variant_stands():
    config = resolve(get_config("closed"), ["--config.variant=1200", "--config.data.image_size=600"])
    assert (config.model.image_size, config.data.image_size) == (1200, 600)
    assert config.model.extra_outer == (512, 512, 256, 256, 256)
