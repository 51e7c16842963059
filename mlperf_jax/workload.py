"""The one seam: what a workload is.

A workload supplies phases; the training loop and the inference path only call them:

    TrainedWorkload   init        makes the state, on the devices, from a seed
                      train_step  one step of training
                      data        the batches of a block of steps (a finite set in epochs, or games played just now)
                      evaluate    the figures of a state
    ServedWorkload    predict     answers to samples
    TokenWorkload     token_programs, request     answers token by token

`mlperf_jax.supervised.SupervisedWorkload` fills in all of them for a model with a loss and a data
set; most workloads derive from it. A model that is only trained, or only served, has one of the two.
Everything that shall be compiled before the clock starts is a `Program` made from shapes alone, so the same
workload also compiles for devices that are not there.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from input_pipelines.base import Spec
from mlperf_jax.errors import UserError
from mlperf_jax.goals import Direction, Goal, Quality
from mlperf_jax.parallel.layout import Layout
from mlperf_jax.precision import Policy
from mlperf_jax.results import events
from mlperf_jax.rounds.published_curves import Beside
from mlperf_jax.weights.lazy import Tensor

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from mlperf_jax.tokens.programs import Programs
    from mlperf_jax.tokens.requests import Request
    from mlperf_jax.training.engine import Engine

State = dict[str, Any]
"""A dict of pytrees of arrays. Of training it holds `step` (int32 []), and all but what is frozen is checkpointed."""

Batch = dict[str, Any]
Evaluation = dict[str, float]
Metrics = dict[str, jax.Array]


class Bucketed(NamedTuple):
    """A batch, and the bucket whose shapes it has."""

    bucket: str
    batch: Batch


class Buckets(dict[str, Batch]):
    """Bucket -> batches of one shape, so that examples need not be padded to the longest of all."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A function to be compiled from shapes, before the clock starts.

    Attributes:
        function: a traceable function.
        args: a pytree of `jax.ShapeDtypeStruct` with shardings for each argument.
        donate: indices of the arguments whose memory the results may take over.
        out_shardings: where results lie, as `jax.jit` takes it; None leaves it to the compiler.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    donate: tuple[int, ...] = ()
    out_shardings: Any = None


@dataclasses.dataclass(frozen=True)
class Block:
    """The steps between two evaluations.

    Attributes:
        index: counts from 0.
        start, stop: global steps [start, stop).
        first_epoch: epochs of data seen before the block, as a fraction.
        epochs: how many epochs of data the block holds.
    """

    index: int
    start: int
    stop: int
    first_epoch: float
    epochs: float


@dataclasses.dataclass(frozen=True)
class Notes:
    """Where a phase leaves what only its workload knows of the training run at hand.

    Attributes:
        log: MLPerf's log.
        folder: for files that people want beside the log; None where none are kept, as outside of a run and
            in processes other than the first.
    """

    log: events.NullLog = events.NullLog()
    folder: Path | None = None


NO_NOTES = Notes()


class Workload(abc.ABC):
    """What is known of a benchmark, trained or served. Construction reads settings, never examples.

    Attributes:
        config: the resolved config.
        policy: dtypes.
        benchmark: MLPerf's name of it, as in result folders.
        unit: what throughput counts.
        direction: where the quality goes as the model gets better.
    """

    benchmark: str
    unit: str = "examples"
    direction: Direction = Direction.HIGHER

    def __init__(
        self, config: ConfigDict, policy: Policy, *, data_dir: Path, synthetic: bool = False
    ) -> None:
        self.config = config
        self.policy = policy
        self.data_dir = data_dir
        self.synthetic = synthetic

    @property
    def metric(self) -> str:
        """The quality's name, for people."""
        return "quality"

    @property
    def goals(self) -> tuple[Goal, ...]:
        """The figures of an evaluation that must be reached, all of them by the same state.

        By default one, `quality`. A workload with several names its own.
        """
        return (Goal("quality", self.config.target, self.direction, self.metric),)

    @property
    def data_description(self) -> str:
        """One phrase for logs, naming the data in use."""
        return ""

    @property
    def made_up_data(self) -> bool:
        """Whether no quality measured on that data means anything."""
        return False

    def published_runs(self, step: int) -> Beside | None:
        """Where published runs of the same benchmark were after as many examples, of which the log and the progress line
        tell at an evaluation; None where nothing is known."""
        return None

    def train_flops_per_example(self) -> float:
        """Model FLOPs (2 per multiply-add) of forward and backward for one example; 0 if unknown."""
        return 0.0

    def implementations(self, platform: str) -> dict[str, Any]:
        """What is computed by one of several means on cpu, gpu or tpu, and by which: for logs."""
        return {}

    @property
    def frozen_entries(self) -> tuple[str, ...]:
        """Entries of the state that no step changes: in no checkpoint, but made by `frozen_state`."""
        return ()

    @property
    def frozen_source(self) -> str:
        """Where they come from, for the log."""
        return "drawn from the seed"

    def frozen_state(self, struct: State, seed: int | None) -> State:
        """Makes or reads the entries that are frozen.

        Args:
            struct: their structs with shardings.
            seed: of the run; None where there was none.

        Raises:
            UserError: they cannot be had.
        """
        return {}

    @classmethod
    def prepare(cls, config: ConfigDict, data_dir: Path) -> None:
        """Fetches or checks the data, where that was not done yet; a workload without files needs nothing.

        Raises:
            UserError: the data cannot be had; the text says why.
        """

    def check_data(self) -> None:
        """Looks, without reading an example, whether the data is there.

        Raises:
            UserError: it is not; the text says how to prepare it.
        """


class TrainedWorkload(Workload):
    """What the training loop calls."""

    # Phases. `init` and `train_step` are traced; the others run on the host.

    @abc.abstractmethod
    def init(self, seed: jax.Array) -> State:
        """Makes the state from a seed (uint32 [])."""

    @abc.abstractmethod
    def train_step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        """One step; the metrics are scalars, `loss` among them."""

    @abc.abstractmethod
    def data(
        self, engine: Engine, state: State, block: Block, start: int, notes: Notes = NO_NOTES
    ) -> tuple[State, Iterator[Batch | Bucketed]]:
        """The batches of steps [start, block.stop), this process's rows of each, as numpy arrays.

        Of a workload with several buckets each batch comes as `Bucketed`. A workload that makes its own
        data makes it here, with its compiled programs, and may return a changed state. `start` is past
        `block.start` only where a run is resumed.
        """

    def look_for_start(self, results: Path) -> None:
        """Called before a run is begun, for a workload that starts from what an earlier one left in RESULTS[/mini].

        Raises:
            UserError: it is not there; the text says how to make it.
        """

    def initial_state(self, engine: Engine, seed: int) -> State:
        """The state that a run begins with: what `init` makes of the seed.

        A workload that starts from published weights puts them in here, before the clock starts.
        """
        return engine.init(seed)

    @abc.abstractmethod
    def evaluate(
        self, engine: Engine, state: State, notes: Notes = NO_NOTES
    ) -> Evaluation | Future[Evaluation]:
        """Measures the state; the figures that `goals` name are held against their targets.

        What needs the devices is done when this returns. Figures that the host goes on computing, in a
        thread of the workload's, may be returned as a future: training goes on meanwhile, and the run
        ends with the state that was measured if it turns out to have reached the target.
        """

    def pictures(self, engine: Engine, state: State, count: int) -> Sequence[bytes]:
        """PNG files of what the state makes of the first `count` evaluation examples, for `--visualize`.

        Only compiled programs are called, by every process alike.
        """
        raise NotImplementedError

    # Shapes.

    @abc.abstractmethod
    def batch_struct(self, layout: Layout) -> Batch | Buckets:
        """One global training batch as structs, batch axis first; or `Buckets` of batches of several shapes.

        Every bucket has `batch_size` rows, and a program of its own that is compiled before the clock starts.
        """

    def state_shardings(self, state: State, layout: Layout) -> Any:
        """Where each array of the state lies; `state` holds structs. Replicated by default."""
        return jax.tree.map(lambda _: layout.replicated, state)

    def programs(self, state: State, layout: Layout) -> Mapping[str, Program]:
        """What `data` and `evaluate` want compiled; `state` holds structs with shardings."""
        return {}

    # Facts for schedules and logs.

    @property
    @abc.abstractmethod
    def num_train(self) -> int:
        """Examples in an epoch of training."""

    @property
    @abc.abstractmethod
    def num_eval(self) -> int:
        """Examples in the evaluation set."""

    @property
    def batch_size(self) -> int:
        """Examples in a global batch."""
        return self.config.batch_size

    def blocks(self) -> Iterator[Block]:
        """The training run, cut where it is evaluated.

        By default every `eval_every_epochs`, the first time after `eval_offset_epochs` if that is
        not 0, until `max_epochs`. Batches cross the borders of epochs, so a block ends with the
        first step that completes its last epoch.
        """
        due = self.config.eval_offset_epochs or self.config.eval_every_epochs
        start = index = 0
        while start < self._step_after(self.config.max_epochs):
            stop = self._step_after(min(due, self.config.max_epochs))
            if stop > start:  # else one batch completed several epochs
                yield Block(index, start, stop, self.epochs(start), self.epochs(stop) - self.epochs(start))
                start, index = stop, index + 1
            due += self.config.eval_every_epochs

    def _step_after(self, epoch: float) -> int:
        return -int(-epoch * self.num_train // self.batch_size)

    def epochs(self, step: int) -> float:
        """Epochs of data seen after so many steps."""
        return step * self.batch_size / self.num_train

    counts_samples: bool = False
    """Whether MLPerf's log of this benchmark counts samples, not epochs."""

    samples_are_epochs: bool = False
    """Whether that log has the samples of an evaluation under the name of epochs too, as BERT's checker wants them."""

    def eval_epoch(self, step: int) -> float:
        """The epoch under which MLPerf's log has the evaluation after so many steps.

        Epochs of data seen, from 0; a benchmark whose references count from 1 says so here.
        """
        return self.epochs(step)

    def hyperparameters(self) -> dict[str, Any]:
        """What MLPerf's log wants to know, by mllog's keys; values as they are used."""
        return {}

    def initialized_tensors(self) -> Sequence[str]:
        """The names that MLPerf's log wants in `weights_initialization` events; older rulesets ask for them."""
        return ()


class ServedWorkload(Workload):
    """What the inference path calls. `predict` is traced; the others run on the host."""

    @property
    def served_goals(self) -> tuple[Goal, ...]:
        """The figures of `answered_figures`; their targets are those that training must reach."""
        return self.goals

    @abc.abstractmethod
    def served_struct(self, layout: Layout) -> State:
        """What `predict` needs, as structs with shardings."""

    @property
    def served_entries(self) -> Mapping[str, str]:
        """Entry of `served_struct` -> entry of a training state that it is; what is frozen is under its own name."""
        return {}

    def served_state(self, state: State) -> State:
        """What `predict` needs of a training state, or of what is built like one (structs, shardings)."""
        return {name: state[entry] for name, entry in self.served_entries.items()}

    def make_samples(self, load: Callable[[Layout], State]) -> Quality | None:
        """Called before anything is measured, for a workload whose samples come from the model itself.

        Args:
            load: reads the model into the places of a layout.

        Returns:
            The quality that the answers are held against; None where it is what training reached.
        """
        return None

    @property
    @abc.abstractmethod
    def num_samples(self) -> int:
        """Samples of inference."""

    most_rows: int = 1
    """Rows of the largest sample, where a sample is several rows that are computed alike, such as items to be ranked.

    The batch sizes of its config's `inference` numbers count rows."""

    def sample_rows(self, indices: np.ndarray) -> np.ndarray:
        """How many rows each of samples [N] has, int64: one, or up to `most_rows`."""
        return np.ones(len(indices), np.int64)

    def sample_spec(self) -> Spec:
        """The inputs of one row of a sample, where all samples have the same shapes."""
        raise NotImplementedError

    def sample_specs(self) -> Mapping[str, Spec]:
        """Bucket -> the inputs of one row of its samples; by default one bucket, called ""."""
        return {"": self.sample_spec()}

    def sample_buckets(self, indices: np.ndarray) -> Sequence[str]:
        """The bucket of each of samples [N]."""
        return [""] * len(indices)

    @abc.abstractmethod
    def read_samples(self, indices: np.ndarray) -> Batch:
        """The inputs [rows, ...] of samples [N], all of one bucket, sample after sample."""

    @abc.abstractmethod
    def predict(self, state: State, inputs: Batch) -> jax.Array:
        """Answers samples.

        Args:
            state: as `served_struct` has it.
            inputs: [B, ...] by name, rows of any samples.

        Returns:
            [B, ...] one row for each.
        """

    def logged_answer(self, index: int, answer: np.ndarray) -> np.ndarray | bytes:
        """What the accuracy log holds of `predict`'s row (or rows [R, ...]) for sample `index`: its bytes in C order.

        By default all. For answers of varying length, which `predict` gives in rows of one length.
        """
        return answer

    @abc.abstractmethod
    def answered_figures(self, indices: np.ndarray, answers: Sequence[bytes]) -> Evaluation:
        """The figures of logged answers to samples [N], by the names of `served_goals`; as `evaluate` finds them.

        Raises:
            ValueError: an answer is not of the form that `predict` gives.
        """

    brings_weights: str = ""
    """Whose published weights lie with the data set, for people and logs; they are measured where no others are named."""

    @property
    def weights_file(self) -> Path:
        """Where these lie, as published."""
        raise NotImplementedError

    def import_weights(self, tensors: Mapping[str, Tensor]) -> tuple[State, dict[str, Any]]:
        """Turns published weights into what `served_struct` describes.

        Args:
            tensors: arrays under the names of the published file.

        Returns:
            The state (NumPy's arrays or lazy ones), and the config that goes with it, dotted key -> value.

        Raises:
            UserError: they are of another model, or this workload has no published weights.
        """
        raise UserError(f"There is no import of published weights for {self.benchmark}.")


class TokenWorkload(ServedWorkload):
    """What the inference path calls of models that answer token by token, instead of `predict` and its samples.

    `num_samples`, `served_struct` and `import_weights` are as of any that is served.
    """

    @property
    @abc.abstractmethod
    def token_goals(self) -> tuple[Goal, ...]:
        """Those of `token_figures` and `served_figures` that must be reached."""

    @property
    @abc.abstractmethod
    def tokenizer_file(self) -> Path | None:
        """The tokenizer of the samples (tokenizer.json), None where it is not known."""

    @abc.abstractmethod
    def token_programs(self, state: State, layout: Layout) -> Programs:
        """The programs of a model in its place; nothing is compiled yet."""

    @abc.abstractmethod
    def request(self, index: int) -> Request:
        """What sample `index` asks for."""

    @abc.abstractmethod
    def token_figures(self, indices: np.ndarray, answers: Sequence[np.ndarray]) -> Evaluation:
        """The figures of answers to samples [N], each [tokens] int32; some of them `token_goals` name."""

    @abc.abstractmethod
    def served_figures(self, programs: Programs, indices: np.ndarray) -> Evaluation:
        """What else is measured of programs with samples [N], whatever they answer; no text is under way."""

    @abc.abstractmethod
    def reference_figures(
        self, state: State, layout: Layout, indices: np.ndarray, answers: Sequence[np.ndarray]
    ) -> Evaluation:
        """What both are held against, by the names of `token_goals`: as published, or of means that are as plain as can be.

        Args:
            state, layout: the model in its place.
            indices: [N] samples.
            answers: the programs' own, [tokens] int32 each, which may save time and change nothing.
        """
