"""Speech recognition: a recording in, what is said in it out; quality is the word error rate.

Batches are as long as their longest recording needs, in one of a few lengths, each of which has its programs.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, cast

import jax
import numpy as np
import optax
from flax import nnx

from input_pipelines.sound.utterances import Bucket, SpeechDataset, spec_of
from mlperf_jax.decoding import ctc_search, drawing
from mlperf_jax.errors import UserError
from mlperf_jax.goals import Direction
from mlperf_jax.metrics.word_error_rate import mean_word_error_rate, word_error_rate
from mlperf_jax.parallel.layout import Layout
from mlperf_jax.speech.ctc import ctc_loss
from mlperf_jax.supervised import Loss, M, SupervisedWorkload, mean_of
from mlperf_jax.training import schedules
from mlperf_jax.training.engine import Engine, named
from mlperf_jax.workload import (
    NO_NOTES,
    Batch,
    Block,
    Bucketed,
    Buckets,
    Evaluation,
    Notes,
    Program,
    Spec,
    State,
)
from models import deepspeech2
from models.deepspeech2 import DeepSpeech2, DeepSpeech2Config
from models.spectrogram import num_frames, spectrogram


class SpeechRecognition(SupervisedWorkload[M, SpeechDataset], Generic[M]):
    """Recordings of `input_pipelines.sound.utterances`, transcripts by `transcribe`, word error rates by jiwer."""

    metric = "word error rate"
    unit = "utterances"
    direction = Direction.ERROR
    classes: str
    """What the model's config calls the number of its symbols, a blank among them."""

    def check_data(self) -> None:
        """Also: that its symbols are the model's, which has a blank besides."""
        super().check_data()
        symbols, classes = self.dataset.symbols, self.config.model[self.classes]
        known = 0 if symbols is None else len(symbols)
        if known >= classes:
            raise UserError(
                f"The transcripts have {known:,} symbols and the model {classes:,}, a blank among them; use "
                f"--config.model.{self.classes}={known + 1}."
            )

    @abc.abstractmethod
    def transcribe(self, model: M, samples: jax.Array, num_samples: jax.Array) -> jax.Array:
        """What is said.

        Args:
            model: the model.
            samples: [B, N] int16, zeros after a recording's end.
            num_samples: [B] int32.

        Returns:
            [B, L] int32: symbols of the data set counted from 1, and zeros after the last.
        """

    def error_rate(self, answers: Sequence[str], references: Sequence[str]) -> float:
        """The quality of answers [N]."""
        return word_error_rate(answers, references)

    # Training batches, by length.

    def batch_struct(self, layout: Layout) -> Buckets:
        return Buckets(
            {
                bucket.name: self._structs(spec_of(bucket), self.batch_size, layout)
                for bucket in self.dataset.train_buckets
            }
        )

    def data(
        self, engine: Engine, state: State, block: Block, start: int, notes: Notes = NO_NOTES
    ) -> tuple[State, Iterator[Batch | Bucketed]]:
        state, batches = super().data(engine, state, block, start, notes)
        plain = cast(Iterator[Batch], batches)
        return state, (Bucketed(_bucket_of(batch), batch) for batch in plain)

    # Evaluation, by length too.

    def programs(self, state: State, layout: Layout) -> dict[str, Program]:
        def transcribe(model_state: State, batch: Batch) -> tuple[jax.Array, ...]:
            """Which examples there are, which of them are no padding, and their transcripts."""
            said = self.answer(self.model(model_state), batch)
            return batch["index"], batch["mask"], said

        model_state = self.served_state(state)
        return {
            named("transcribe", bucket.name): Program(
                transcribe,
                (model_state, self._eval_structs(bucket, layout)),
                out_shardings=layout.replicated,
            )
            for bucket in self.dataset.buckets
        }

    def _eval_structs(self, bucket: Bucket, layout: Layout) -> Batch:
        """An evaluation batch of a bucket as structs, without what is only said in it."""
        shapes = spec_of(bucket)
        spec = {
            name: shapes.get(name, self.dataset.eval_spec[name])
            for name in (*self.input_names, "index", "mask")
        }
        return self._structs(spec, self.config.eval_batch_size, layout)

    def evaluate(self, engine: Engine, state: State, notes: Notes = NO_NOTES) -> Evaluation:
        indices, answers = self._answers(engine, state)
        return {"quality": self._quality(indices, answers)}

    def pictures(self, engine: Engine, state: State, count: int) -> list[bytes]:
        """What is said in the shortest recordings, and what was heard."""
        indices, answers = self._answers(engine, state, batches=-(-count // self.config.eval_batch_size))
        return [
            drawing.draw([("said", self.dataset.evaluation.text(index)), ("heard", answer)])
            for index, answer in zip(indices[:count].tolist(), answers, strict=False)
        ]

    def _answers(
        self, engine: Engine, state: State, batches: int | None = None
    ) -> tuple[np.ndarray, list[str]]:
        """Evaluation examples [N], all or those of the first so many batches, and their transcripts."""
        model_state, size = self.served_state(state), self.config.eval_batch_size
        found: list[Any] = []
        read = self.dataset.eval_batches(batch_size=size, rows=engine.layout.rows(size))
        with contextlib.closing(read):
            for batch in itertools.islice(read, batches):
                name = named("transcribe", _bucket_of(batch))
                struct = engine.programs[name].args[1]
                placed = engine.place({field: batch[field] for field in struct}, struct)
                found.append(engine.run(name, model_state, placed))
                # The devices have a batch more to do while one is fetched.
                if len(found) > 1:
                    found[-2] = jax.device_get(found[-2])
        indices: list[int] = []
        answers: list[str] = []
        for index, mask, said in jax.device_get(found):
            indices += index[mask > 0].tolist()
            answers += [self._text(row) for row in said[mask > 0]]
        return np.array(indices), answers

    def _quality(self, indices: np.ndarray, answers: Sequence[str]) -> float:
        return self.error_rate(answers, [self.dataset.evaluation.text(index) for index in indices.tolist()])

    def _text(self, row: np.ndarray) -> str:
        """The text of a row of `transcribe`."""
        symbols = (row[row > 0] - 1).tolist()
        if self.dataset.symbols is None:  # of random symbols
            return " ".join(map(str, symbols))
        return self.dataset.symbols.decode(symbols)

    # Inference: a sample is a recording, compiled and batched by length.

    input_names = ("samples", "num_samples")

    def sample_specs(self) -> Mapping[str, Spec]:
        return {
            bucket.name: {name: spec_of(bucket)[name] for name in self.input_names}
            for bucket in self.dataset.buckets
        }

    def sample_buckets(self, indices: np.ndarray) -> Sequence[str]:
        return [bucket.name for bucket in self.dataset.eval_buckets(indices)]

    def answer(self, model: M, inputs: Batch) -> jax.Array:
        """As `transcribe`."""
        return self.transcribe(model, inputs["samples"], inputs["num_samples"])

    def logged_answer(self, index: int, answer: np.ndarray) -> bytes:
        """The text, as MLPerf's log of speech recognition has it."""
        return self._text(answer).encode()

    def answered_figures(self, indices: np.ndarray, answers: Sequence[bytes]) -> Evaluation:
        """Of texts in UTF-8."""
        return {"quality": self._quality(indices, [answer.decode() for answer in answers])}


def _bucket_of(batch: Batch) -> str:
    return f"{batch['samples'].shape[1]}"


class DeepSpeech2Recognition(SpeechRecognition[DeepSpeech2]):
    """DeepSpeech2 on LibriSpeech (closed), and a small one on spoken sentences (mini), by CTC over characters.

    A recording's loss is a sum over its frames, and a batch's the mean of those; the quality is the mean of the
    utterances' own error rates: both as the reference has them.
    """

    benchmark = "deepspeech2"
    classes = "vocab_size"

    @functools.cached_property
    def model_config(self) -> DeepSpeech2Config:
        return DeepSpeech2Config(bins=self.config.features.window // 2 + 1, **self.config.model.to_dict())

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        return DeepSpeech2(self.model_config, policy=self.policy, rngs=rngs)

    def implementations(self, platform: str) -> dict[str, Any]:
        return {"gru": "scan"}

    def _heard(
        self, model: DeepSpeech2, samples: jax.Array, num_samples: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Logits [B, T, V] and how many of T are real [B]; for training at random tempos and pitches, of `key`."""
        numbers = self.config.features

        def drawn(number: int, least: float, most: float) -> jax.Array | None:
            if key is None or least == most:
                return None
            own = jax.random.fold_in(key, number)
            return jax.random.uniform(own, num_samples.shape, minval=least, maxval=most)

        seen, frames = spectrogram(
            samples.astype(self.policy.output_dtype),
            num_samples,
            window=numbers.window,
            hop=numbers.hop,
            scale=numbers.scale,
            tempo=drawn(0, *numbers.tempo),
            slowest=numbers.tempo[0],
            pitch=drawn(1, *numbers.pitch),
        )
        return model(seen, train=key is not None), deepspeech2.frames_after(self.model_config, frames)

    def loss(self, model: DeepSpeech2, batch: Batch, key: jax.Array) -> Loss:
        logits, frames = self._heard(model, batch["samples"], batch["num_samples"], key)
        return mean_of(ctc_loss(logits, frames, batch["symbols"] + 1, batch["num_symbols"]))

    def transcribe(self, model: DeepSpeech2, samples: jax.Array, num_samples: jax.Array) -> jax.Array:
        logits, frames = self._heard(model, samples, num_samples, None)
        if beams := self.config.decode.beams:
            return ctc_search.prefix_beam_search(logits, frames, beams=beams)[0]
        return ctc_search.greedy(logits, frames)

    def error_rate(self, answers: Sequence[str], references: Sequence[str]) -> float:
        return mean_word_error_rate(answers, references)

    def schedule(self) -> optax.Schedule:
        """Learning rate by step."""
        numbers = self.config.schedule
        return schedules.annealed_by_epoch(
            self.config.optimizer.base_lr,
            numbers.anneal,
            steps_per_epoch=self.num_train / self.batch_size,
            warmup_steps=numbers.warmup_steps,
        )

    def hyperparameters(self) -> dict[str, Any]:
        optimizer, schedule = self.config.optimizer, self.config.schedule
        return {
            "opt_name": {"torch_sgd": "sgd"}.get(optimizer.name, optimizer.name),
            "opt_base_learning_rate": optimizer.base_lr,
            **({"opt_momentum": optimizer.momentum} if "momentum" in optimizer else {}),
            "opt_weight_decay": optimizer.weight_decay,
            "opt_gradient_clip_norm": optimizer.clip_norm,
            "opt_learning_rate_warmup_steps": schedule.warmup_steps,
            "opt_learning_rate_decay_factor": schedule.anneal,
            "data_speed_perturbaton_min": self.config.features.tempo[0],
            "data_speed_perturbaton_max": self.config.features.tempo[1],
        }

    def train_flops_per_example(self) -> float:
        """Of a recording of mean length."""
        mean = float(self.dataset.train.num_samples.mean())
        frames = float(num_frames(mean, self.config.features.hop))
        return deepspeech2.train_flops_per_recording(self.model_config, frames)
