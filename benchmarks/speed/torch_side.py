"""A peer's side: the same in PyTorch, eager or through `torch.compile`, from our weights, on our batches."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from benchmarks import peers
from benchmarks.speed import handed
from benchmarks.speed.peer import Peer, Tensors
from benchmarks.speed.side import TRAIN, Side
from mlperf_jax import making
from mlperf_jax.workload import TrainedWorkload


class TorchSide(Side):
    """A peer, in eager mode or compiled for each of the shapes."""

    def prepare(self) -> dict[str, Any]:
        spec = self.spec
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        torch.manual_seed(spec["seed"])
        torch.set_float32_matmul_precision("highest")
        self.device = {"cpu": "cpu", "gpu": "cuda"}[spec["platform"]]
        recipe = making.choose(
            spec["workload"], spec["preset"], spec["platform"], spec["overrides"], kind=TrainedWorkload
        )
        state = handed.read(self.folder / "state.npz")

        def make() -> Peer:
            workload = recipe.make(self.folder, synthetic=True)
            return peers.find(spec["workload"])(
                workload, state, device=self.device, fast=spec["side"] == "compile"
            )

        # What is served keeps its first weights, as ours does.
        self.peer, self.served = make(), make()
        self.rates = handed.read(self.folder / "rates.npz")["rates"].tolist()
        self.batch = self._tensors("batch", self.device)
        self.steps = 0
        self.answers: dict[str, torch.Tensor] = {}
        return {"threads": torch.get_num_threads()}

    def _tensors(self, name: str, device: str) -> Tensors:
        arrays = handed.read(self.folder / f"{name}.npz")
        return {key: torch.from_numpy(np.ascontiguousarray(x)).to(device) for key, x in arrays.items()}

    def compile(self, program: str) -> None:
        if program == TRAIN:
            self.runs[TRAIN] = self._train
            self._train(1)
            self.first_loss = float(self.loss)
            self._train(1)  # the optimizer has its state by now
            return
        inputs = self._tensors(f"{program}_inputs", "cpu")

        def run(calls: int) -> None:
            self.served.model.eval()
            for _ in range(calls):
                self.answers[program] = self.served.predict(inputs)

        run(2)
        self.runs[program] = run

    def _train(self, calls: int) -> None:
        self.peer.model.train()
        for _ in range(calls):
            rate = self.rates[min(self.steps, len(self.rates) - 1)]
            self.loss = self.peer.train_step(self.batch, rate)
            self.steps += 1
        self._wait()

    def agreement(self) -> dict[str, Any]:
        """How far the first loss is from ours, relative; and the share of the answers' numbers that differ."""
        found = {}
        if TRAIN in self.runs and (self.folder / "loss.npz").exists():
            ours = float(handed.read(self.folder / "loss.npz")["first"])
            found[TRAIN] = abs(self.first_loss - ours) / abs(ours)
        for program, answers in self.answers.items():
            if (path := self.folder / f"{program}.npz").exists():
                ours_said = handed.read(path)["answers"]
                same = np.isclose(answers.numpy(), ours_said, rtol=1e-3, atol=1e-4)
                found[program] = float(1 - same.mean())
        return found

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    @property
    def device_peak(self) -> int:
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else 0
