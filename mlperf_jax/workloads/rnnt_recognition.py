"""RNN-T: speech recognition by a transducer; the rest of the task is `mlperf_jax.workloads.speech_recognition`."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mlperf_jax.decoding import transducer_search
from mlperf_jax.speech.transducer import transducer_loss
from mlperf_jax.supervised import Loss, mean_of
from mlperf_jax.training import optimizers, schedules
from mlperf_jax.weights import rnnt as weights
from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.workload import Batch, State
from mlperf_jax.workloads.speech_recognition import SpeechRecognition
from models import lstm, random_bits, rnnt, sound
from models.rnnt import RNNT, RNNTConfig
from models.sound import FeatureConfig, Masks


class RNNTRecognition(SpeechRecognition[RNNT]):
    """RNN-T on LibriSpeech (closed), and a small one on spoken sentences (mini).

    A batch's loss is the mean of its utterances'; the quality counts the errors of all words together.
    """

    benchmark = "rnnt"
    classes = "classes"

    @functools.cached_property
    def feature_config(self) -> FeatureConfig:
        return FeatureConfig(**self.config.features.to_dict())

    @functools.cached_property
    def model_config(self) -> RNNTConfig:
        width = self.feature_config.filters * self.config.splice
        return RNNTConfig(features=width, **self.config.model.to_dict())

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        return RNNT(self.model_config, policy=self.policy, rngs=rngs)

    def implementations(self, platform: str) -> dict[str, Any]:
        chosen = lstm.choose(self.model_config.lstm, dtype=self.policy.compute_dtype, platform=platform)
        return {"lstm": chosen, "dropout_bits": random_bits.NAME}

    # What the model hears.

    def features(
        self, samples: jax.Array, num_samples: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Spliced log-mel features [B, T, F] of recordings, and frames [B]; with a key as they are in training.

        In evaluation all recordings have the same noise, so that an answer does not depend on its batch.
        """
        heard = sound.waveform(samples, self.policy.output_dtype)
        if key is None:
            noise = jax.random.normal(jax.random.key(0), (1, heard.shape[1]), heard.dtype)
            x, frames = sound.log_mel(heard, num_samples, self.feature_config, noise)
        else:
            of_speed, of_noise, of_masks = jax.random.split(key, 3)
            heard, num_samples = self._sped(heard, num_samples, of_speed)
            noise = jax.random.normal(of_noise, heard.shape, heard.dtype)
            x, frames = sound.log_mel(heard, num_samples, self.feature_config, noise)
            x = sound.masked(x, frames, Masks(**self.config.masks.to_dict()), of_masks)
        return sound.spliced(x, frames, self.config.splice)

    def _sped(self, heard: jax.Array, num_samples: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        slowest, fastest = self.config.speeds
        if slowest == fastest == 1:
            return heard, num_samples
        speeds = jax.random.uniform(key, (len(heard),), heard.dtype, slowest, fastest)
        width = math.ceil(heard.shape[1] / min(slowest, 1))
        return sound.sped(heard, num_samples, speeds, width)

    # The phases.

    def loss(self, model: RNNT, batch: Batch, key: jax.Array) -> Loss:
        of_features, of_model = jax.random.split(key)
        features, frames = self.features(batch["samples"], batch["num_samples"], of_features)
        blank, label, frames = model(features, frames, batch["symbols"], key=of_model)
        return mean_of(transducer_loss(blank, label, frames, batch["num_symbols"]))

    def transcribe(self, model: RNNT, samples: jax.Array, num_samples: jax.Array) -> jax.Array:
        encoded, frames = model.encode(*self.features(samples, num_samples))
        said = transducer_search.greedy(
            model.joint,
            model.predict_next,
            model.predict_first(len(samples)),
            encoded,
            jnp.where(num_samples > 0, frames, 0),
            most=self.config.decode.most,
            most_in_frame=self.config.decode.most_in_frame,
        )
        return said + 1  # as the task counts symbols

    def make_optimizer(self, params: Any) -> optax.GradientTransformation:
        """All parameters decay, biases too, as in the reference."""
        everything = jax.tree.map(lambda _: True, params)
        return optimizers.make_optimizer(self.config.optimizer, self.schedule(), everything)

    def schedule(self) -> optax.Schedule:
        """Learning rate by step."""
        numbers = self.config.schedule
        return schedules.exponential_after_hold(
            self.config.optimizer.base_lr,
            numbers.warmup_epochs,
            numbers.hold_epochs,
            numbers.gamma,
            steps_per_epoch=self.num_train / self.batch_size,
            min_lr=numbers.min_lr,
        )

    def import_weights(self, tensors: Mapping[str, Tensor]) -> tuple[State, dict[str, Any]]:
        return weights.from_state_dict(tensors, self.model_config)

    # Facts for logs.

    def hyperparameters(self) -> dict[str, Any]:
        optimizer, schedule, masks = self.config.optimizer, self.config.schedule, self.config.masks
        slowest, fastest = self.config.speeds
        return {
            "opt_name": optimizer.name,
            "opt_base_learning_rate": optimizer.base_lr,
            "opt_lamb_epsilon": optimizer.epsilon,
            "opt_lamb_beta_1": optimizer.beta1,
            "opt_lamb_beta_2": optimizer.beta2,
            "opt_weight_decay": optimizer.weight_decay,
            "opt_gradient_clip_norm": optimizer.clip_norm,
            "opt_learning_rate_alt_warmup_func": True,
            "opt_learning_rate_alt_decay_func": True,
            "opt_learning_rate_warmup_epochs": schedule.warmup_epochs,
            "opt_lamb_learning_rate_hold_epochs": schedule.hold_epochs,
            "opt_lamb_learning_rate_decay_poly_power": schedule.gamma,
            "opt_lamb_learning_rate_min": schedule.min_lr,
            "data_train_max_duration": self.config.data.get("max_seconds", 0.0),
            "data_train_num_buckets": len(self.dataset.train_buckets),
            # So the log's own list of keys spells it.
            "data_speed_perturbaton_min": slowest,
            "data_speed_perturbaton_max": fastest,
            "data_spec_augment_freq_n": masks.freq_masks,
            "data_spec_augment_freq_min": 0,
            "data_spec_augment_freq_max": masks.max_freq,
            "data_spec_augment_time_n": masks.time_masks,
            "data_spec_augment_time_min": 0,
            "data_spec_augment_time_max": masks.max_time,
            "model_weights_initialization_scale": self.config.model.init_scale,
            "model_eval_ema_factor": self.config.ema_decay,
            "eval_max_prediction_symbols": self.config.decode.most,
        }

    def initialized_tensors(self) -> Sequence[str]:
        return ("pre_rnn", "post_rnn", "pred_embed", "dec_rnn", "joint_pred", "joint_enc", "joint_net")

    def train_flops_per_example(self) -> float:
        """Of an utterance of mean length."""
        seconds = float(self.dataset.train.num_samples.mean())
        frames = seconds / self.feature_config.hop / self.config.splice
        symbols = float(self.dataset.train.num_symbols.mean())
        return rnnt.train_flops_per_utterance(self.model_config, frames, symbols)
