"""The Transformer's config: MLPerf's numbers in closed, one table's vocabulary in both."""

import pytest

from configs.transformer import get_config
from input_pipelines.text import libreoffice_help, wmt
from mlperf_jax import config as configs


def test_closed_is_the_reference():
    config = get_config("closed")
    assert config.model.to_dict() == dict(
        vocab_size=33708,
        width=1024,
        mlp_width=4096,
        num_heads=16,
        num_layers=6,
        dropout=0.1,
        attention_dropout=0.1,
        relu_dropout=0.1,
    )
    # Batches of 4,096 tokens, as many as the reference's big model.
    assert config.batch_size * config.data.max_length == 4096
    assert config.optimizer.to_dict() == dict(
        name="lazy_adam", base_lr=2.0, beta1=0.9, beta2=0.997, epsilon=1e-9
    )
    assert (config.schedule.warmup_steps, config.label_smoothing, config.target) == (16000, 0.1, 0.25)
    assert (config.decode.beams, config.decode.alpha, config.decode.extra_length) == (4, 0.6, 50)
    assert config.eval_every_epochs == 1 and config.eval_offset_epochs in (0, 1)


@pytest.mark.parametrize(
    ("batch", "base_lr", "warmup"), [(512, 1.875, 1107), (2048, 3.3092157691415953, 664)]
)
def test_points_of_published_submissions(batch, base_lr, warmup):
    """As the logs of training_results_v0.7 have them."""
    base = configs.base_config("transformer", "closed")
    config = configs.resolve(base, [f"--config.reference_point={batch}"])
    assert (config.batch_size, config.optimizer.base_lr, config.schedule.warmup_steps) == (
        batch,
        base_lr,
        warmup,
    )
    assert config.optimizer.name == "adam" and config.optimizer.epsilon == 1e-9


@pytest.mark.parametrize(("preset", "data"), [("closed", wmt), ("mini", libreoffice_help)])
def test_the_model_has_the_vocabulary_of_its_data(preset, data):
    config = get_config(preset)
    assert config.model.vocab_size == data.VOCAB_SIZE and config.data.max_length == data.MAX_LENGTH


def test_mini_asks_for_no_less_than_it_may():
    config = get_config("mini")
    assert config.target >= 0.08
    assert config.label_smoothing == 0.1 and config.decode.beams == 4
