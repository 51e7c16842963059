"""Reinforcement learning: MiniGo, which learns Go from games against itself.

A block of training is one generation: its `data` phase plays games with the network as it is, all of them
compiled, and puts what the search found into a window that is part of the training state; its steps read
the window; its evaluation is a match against a fixed opponent.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mlperf_jax.errors import UserError
from mlperf_jax.go import positions, records
from mlperf_jax.go.features import PLANES, symmetries, turn_features, turn_moves
from mlperf_jax.go.match import Games, MatchConfig, play_match
from mlperf_jax.go.positions import PositionsConfig
from mlperf_jax.go.rules import Rules
from mlperf_jax.go.search import Search
from mlperf_jax.go.selfplay import Played, SelfPlay, SelfPlayConfig
from mlperf_jax.goals import Goal
from mlperf_jax.parallel import mesh
from mlperf_jax.parallel.layout import Layout, LogicalAxes
from mlperf_jax.supervised import GradientWorkload, Loss, mean_of
from mlperf_jax.training.engine import Engine
from mlperf_jax.weights import files
from mlperf_jax.weights import minigo as weights
from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.workload import NO_NOTES, Batch, Block, Evaluation, Metrics, Notes, Program, Spec, State
from models.minigo import DualNetwork, DualNetworkConfig, flops_per_position

_SHOWN = 8  # games of each generation that are written down
_AT_ONCE = 1024  # positions that are answered together while samples are made


class MiniGo(GradientWorkload):
    """MLPerf's MiniGo: 19x19 against a fixed checkpoint (closed), a small board against its beginning (mini)."""

    benchmark = "minigo"
    metric = "matches won"
    unit = "positions"

    _positions: dict[str, np.ndarray]  # what `make_samples` made

    # What it is made of.

    @functools.cached_property
    def rules(self) -> Rules:
        return Rules(**self.config.game.to_dict())

    @functools.cached_property
    def search(self) -> Search:
        return Search(self.rules, self.judge, self.config.value_init_penalty)

    @functools.cached_property
    def self_play(self) -> SelfPlay:
        return SelfPlay(SelfPlayConfig(**self.config.self_play.to_dict()), self.search)

    @functools.cached_property
    def match(self) -> MatchConfig:
        return MatchConfig(**self.config.match.to_dict())

    @functools.cached_property
    def model_config(self) -> DualNetworkConfig:
        return DualNetworkConfig(size=self.rules.size, planes=PLANES, **self.config.model.to_dict())

    def build_model(self, rngs: nnx.Rngs) -> nnx.Module:
        return DualNetwork(self.model_config, policy=self.policy, rngs=rngs)

    def judge(self, variables: State, planes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits and outcome of positions, as `Search` wants it."""
        with jax.enable_x64(self.policy.needs_x64):
            return self.model(variables)(planes, train=False)

    # Training.

    @property
    def num_train(self) -> int:
        """An epoch is a generation: the steps that read `train_filter` of a full window."""
        read = self.config.train_filter * self.self_play.config.positions
        return max(round(read / self.batch_size), 1) * self.batch_size

    @property
    def num_eval(self) -> int:
        """Games of a match."""
        return self.match.games

    def check_data(self) -> None:
        _ = self._given  # Reads the two checkpoints, and says which is missing.

    @property
    def made_up_data(self) -> bool:
        """Random positions; or, under the closed rules, another opponent than MLPerf's."""
        return self.synthetic or (self.config.preset == "closed" and self.config.target_checkpoint == "first")

    @property
    def data_description(self) -> str:
        if self.synthetic:
            return "synthetic data (random positions)"
        return "self-play" + (", not against MLPerf's opponent" if self.made_up_data else "")

    @functools.cached_property
    def _given(self) -> dict[str, State]:
        """The networks that files hold, by role: where to begin, whom to beat (NumPy arrays)."""
        if self.synthetic:
            return {}
        roles = {"start": ("start_checkpoint", "random"), "opponent": ("target_checkpoint", "first")}
        return {
            role: self._read(key, self.config[key])
            for role, (key, own) in roles.items()
            if self.config[key] != own
        }

    def _read(self, key: str, path: str) -> State:
        if not path:
            raise UserError(
                f"MiniGo's closed rules give the networks to begin with and to beat, and --config.{key} "
                f"names none: fetch gs://minigo-pub/ml_perf/0.7, and give the file NAME.index (or "
                "--config.start_checkpoint=random --config.target_checkpoint=first to rehearse without; "
                "--preset=mini needs no files)."
            )
        folder = Path(path)
        if folder.is_dir():
            lazy = files.load(folder).state
        else:
            lazy = self.import_weights(files.read_tensors(folder))[0]
        return jax.tree.map(np.asarray, lazy)

    def import_weights(self, tensors: Mapping[str, Tensor]) -> tuple[State, dict[str, Any]]:
        return weights.from_tensorflow(tensors, self.model_config), {}

    def init(self, seed: jax.Array) -> State:
        state = super().init(seed)

        def given(role: str, own: State) -> State:
            if role not in self._given:
                return own
            return jax.tree.map(lambda o, g: jnp.asarray(g, o.dtype), own, self._given[role])

        state |= given("start", self.served_state(state))
        opponent = given("opponent", self.served_state(state))
        key = jax.random.fold_in(jax.random.key(seed), _PLAY)
        played = self.self_play.made_up(key) if self.synthetic else self.self_play.init(key)
        return state | {"opponent": opponent, "played": played}

    def train_step(self, state: State, batch: Batch) -> tuple[State, Metrics]:
        planes, policy, outcome = self.self_play.examples(state["played"].window, batch["index"])
        examples = {"planes": planes, "policy": policy, "outcome": outcome}
        new, metrics = super().train_step(state, examples)
        return state | new, metrics

    def loss(self, model: nnx.Module, batch: Batch, key: jax.Array) -> Loss:
        """Cross-entropy with the search's policy and squared error of the outcome, on a turned board.

        The reference's third term, `l2_strength` times half the squared weights, is in the optimizer.
        """
        turned = jax.random.randint(key, batch["outcome"].shape, 0, 8)
        order = jnp.asarray(symmetries(self.rules.size))[turned]
        logits, value = model(turn_features(batch["planes"], turned), train=True)
        policy = turn_moves(batch["policy"], order).astype(logits.dtype)
        policy_cost, count = mean_of(-(policy * jax.nn.log_softmax(logits)).sum(1))
        value_cost = jnp.square(value - batch["outcome"].astype(value.dtype)).sum()
        return policy_cost + self.config.value_cost_weight * value_cost, count

    def make_optimizer(self, params: Any) -> optax.GradientTransformation:
        """Momentum as TensorFlow has it, m <- momentum * m + g, w <- w - lr * m, g with L2 on all but biases."""
        config = self.config.optimizer

        def decays(path: tuple[Any, ...], _: Any) -> bool:
            return path[-1].key != "bias"

        mask = jax.tree_util.tree_map_with_path(decays, params)
        return optax.chain(
            optax.add_decayed_weights(config.l2_strength, mask),
            optax.sgd(self.schedule(), momentum=config.momentum),
        )

    def schedule(self) -> optax.Schedule:
        """Learning rate by step: constant between the boundaries; at a boundary still the old one."""
        rates = jnp.asarray(self.config.optimizer.lr_rates)
        boundaries = jnp.asarray(self.config.optimizer.lr_boundaries)
        return lambda step: rates[(step > boundaries).sum()]

    def data(
        self, engine: Engine, state: State, block: Block, start: int, notes: Notes = NO_NOTES
    ) -> tuple[State, Iterator[Batch]]:
        seed = int(jax.device_get(state["seed"]))
        if self.synthetic:
            known = np.arange(self.self_play.config.positions)
        else:
            if start == block.start:  # else the generation's games are in the state that was saved
                state = engine.run("play", state)
                self._tell(engine, state["played"], block, notes)
            known = np.flatnonzero(engine.run("outcomes", state["played"].window.outcome))
        return state, self._draws(known, seed, engine.rows, block, start)

    def _draws(self, known: np.ndarray, seed: int, rows: slice, block: Block, start: int) -> Iterator[Batch]:
        """Positions of finished games in random order, each once; from the start again where they run out."""
        wanted = (block.stop - block.start) * self.batch_size
        random = np.random.default_rng([seed, block.index])
        rounds = [random.permutation(known) for _ in range(-(-wanted // len(known)))]
        order = np.concatenate(rounds)[:wanted].reshape(-1, self.batch_size)
        for index in order[start - block.start :]:
            yield {"index": index[rows].astype(np.int32)}

    def _tell(self, engine: Engine, played: Played, block: Block, notes: Notes) -> None:
        """Logs what was played, and writes some of the games down."""
        games = int(played.games)
        facts = {
            "epoch_num": block.first_epoch + 1,
            "moves": int(played.plies) * self.self_play.config.lanes,
            "black_won": int(played.black) / games,
            "resigned": int(played.resigned) / games,
            "mean_length": int(played.length) / games,
        }
        notes.log.event("actual_selfplay_games_per_generation", games, metadata=facts)
        last = jax.device_get(engine.run("last", played.last))
        shown = [i for i in range(len(last.length)) if last.length[i]][:_SHOWN]
        players = (f"generation {block.index}",) * 2
        _write(
            notes,
            f"selfplay_{block.index:04}.sgf",
            [
                records.Record(
                    self.rules.size,
                    self.rules.komi,
                    tuple(last.moves[i, : last.length[i]].tolist()),
                    "BW"[int(last.outcome[i] < 0)] + ("+R" if last.resigned[i] else "+"),
                    players,
                )
                for i in shown
            ],
        )

    # Evaluation.

    def evaluate(self, engine: Engine, state: State, notes: Notes = NO_NOTES) -> dict[str, float]:
        now = self.served_state(state)
        games = jax.device_get(engine.run("match", now, state["opponent"]))
        won = games.won.reshape(2, -1)
        _write(notes, f"match_{int(state['played'].generation):04}.sgf", self._match_records(games))
        return {
            "quality": float(won.mean()),
            "won_as_black": float(won[0].mean()),
            "won_as_white": float(won[1].mean()),
            "mean_length": float(games.length.mean()),
        }

    def _match_records(self, games: Games) -> list[records.Record]:
        players = ("trained", "opponent")
        return [
            records.Record(
                self.rules.size,
                self.rules.komi,
                tuple(games.moves[side, i, : games.length[side, i]].tolist()),
                "BW"[int(games.outcome[side, i] < 0)] + "+",
                players if side == 0 else players[::-1],
            )
            for side in range(2)
            for i in range(games.length.shape[1])
        ]

    # Inference: a sample is a position, its answer the policy's first move.

    @property
    def served_goals(self) -> tuple[Goal, ...]:
        return (Goal("quality", self.config.target, metric="agreement of the policy with search"),)

    def make_samples(self, load: Callable[[Layout], State]) -> float:
        variables = load(mesh.single_device_layout())
        config = PositionsConfig(**self.config.positions.to_dict())
        name = positions.fingerprint(variables, config, self.rules, self.model_config)
        path = self.data_dir / "minigo" / f"positions_{name}.npz"
        found = positions.load(path, self.rules.size)
        if found is None:
            found = self._make_positions(config, variables)
            positions.save(path, found)
        self._positions = found
        predict = self._traced(self.predict)
        answers = [
            predict(variables, {"planes": found["planes"][start : start + _AT_ONCE]})
            for start in range(0, config.count, _AT_ONCE)
        ]
        return float(np.mean(np.concatenate(answers) == found["move"]))

    def _make_positions(self, config: PositionsConfig, variables: State) -> dict[str, np.ndarray]:
        play = _narrow(functools.partial(positions.play, config, self.search))
        try:
            return positions.choose(config, jax.device_get(self._traced(play)(variables)))
        except ValueError as error:
            raise UserError(
                f"{error}; give more --config.positions.games, or fewer --config.positions.count."
            ) from None

    def _traced(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compiled with the policy's precision of products."""

        def traced(*args: Any) -> Any:
            with jax.default_matmul_precision(self.policy.matmul):
                return function(*args)

        return jax.jit(traced)

    @property
    def num_samples(self) -> int:
        return self.config.positions.count

    def sample_spec(self) -> Spec:
        size = self.rules.size
        return {"planes": ((size, size, PLANES), np.dtype(bool))}

    def read_samples(self, indices: np.ndarray) -> Batch:
        return {"planes": self._positions["planes"][indices]}

    def predict(self, state: State, inputs: Batch) -> jax.Array:
        """The policy's first move at each position, [B] int32."""
        return self.judge(state, inputs["planes"])[0].argmax(1).astype(jnp.int32)

    def answered_figures(self, indices: np.ndarray, answers: Sequence[bytes]) -> Evaluation:
        moves = np.array([np.frombuffer(answer, "<i4").item() for answer in answers])
        return {"quality": float(np.mean(moves == self._positions["move"][indices]))}

    # Shapes.

    def batch_struct(self, layout: Layout) -> Batch:
        return {"index": layout.struct((self.batch_size,), np.int32, ("batch",))}

    def state_shardings(self, state: State, layout: Layout) -> Any:
        def lies(axes: LogicalAxes, tree: Any) -> Any:
            return jax.tree.map(lambda x: layout.sharding(x.shape, axes), tree)

        shardings = super().state_shardings(state, layout)
        played = shardings["played"]._replace(
            lanes=lies(("batch",), state["played"].lanes),
            last=lies(("batch",), state["played"].last),
            window=lies((None, None, "batch"), state["played"].window),
        )
        return shardings | {"played": played}

    def programs(self, state: State, layout: Layout) -> Mapping[str, Program]:
        places = jax.tree.map(lambda x: x.sharding, state)
        here = layout.replicated
        now = self.served_state(state)
        return {
            "play": Program(_narrow(self._play), (state,), donate=(0,), out_shardings=places),
            "outcomes": Program(lambda x: x, (state["played"].window.outcome,), out_shardings=here),
            "last": Program(lambda x: x, (state["played"].last,), out_shardings=here),
            "match": Program(
                _narrow(functools.partial(play_match, self.match, self.search)),
                (now, state["opponent"]),
                out_shardings=here,
            ),
        }

    def _play(self, state: State) -> State:
        now = self.served_state(state)
        key = jax.random.fold_in(jax.random.key(state["seed"]), _PLAY)
        return state | {"played": self.self_play.generation(now, state["played"], key)}

    # Facts for logs.

    def hyperparameters(self) -> dict[str, Any]:
        return {
            "train_batch_size": self.batch_size,
            "lr_boundaries": list(self.config.optimizer.lr_boundaries),
            "lr_rates": list(self.config.optimizer.lr_rates),
            "min_selfplay_games_per_generation": self.self_play.config.games_per_generation,
        }

    def train_flops_per_example(self) -> float:
        return flops_per_position(self.model_config, train=True)


_PLAY = 0x60  # keeps the keys of self-play apart from those of training steps


def _write(notes: Notes, name: str, games: list[records.Record]) -> None:
    if notes.folder is not None:
        records.write(notes.folder / "games" / name, games)


def _narrow(function: Callable[..., Any]) -> Callable[..., Any]:
    """Traces games in 32 bits, which pgx is written for, also where the network has 64."""

    def traced(*args: Any) -> Any:
        with jax.enable_x64(False):
            return function(*args)

    return traced
