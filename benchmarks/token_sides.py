"""The two sides of `benchmarks.token_speed`: our engine, and `transformers`' batched generate on PyTorch, with the same weights.

Each lives in a process of its own, so that neither's threads are in the other's way, and works when it is asked.
"""

from __future__ import annotations

import multiprocessing
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from input_pipelines.text import debian_descriptions, smollm2

SEED, PROMPTS = 1, 256
LEAST_NEW, MOST_NEW = 16, 128
LENGTH = 256  # of prompt and answer
PAGE, CHUNKS = 32, (32, 48, 64, 80, 96, 112, 128)


class Text(NamedTuple):
    """A prompt [L] int32, and so many new tokens, no fewer and no more."""

    prompt: np.ndarray
    new: int


def texts(data_dir: Path) -> list[Text]:
    """Descriptions of Debian's packages as prompts, and lengths of answers, drawn from a fixed seed."""
    random = np.random.default_rng(SEED)
    dataset = debian_descriptions.open_dataset(data_dir, {"length": debian_descriptions.LENGTH})
    rows = dataset.read_train(0, PROMPTS, seed=SEED)
    new = random.integers(LEAST_NEW, MOST_NEW + 1, PROMPTS).tolist()
    firsts = np.argmax(rows["told"], 1)  # of the summary's tokens
    return [Text(row[:first], n) for row, first, n in zip(rows["tokens"], firsts, new, strict=True)]


def _published(data_dir: Path) -> Any:
    """SmolLM2's parameters, arrays of numpy, and its sizes."""
    import jax

    from mlperf_jax.weights import files, llama
    from models.decoder import DecoderConfig

    config = DecoderConfig.smollm2_135m()
    path = data_dir / "weights" / "smollm2" / smollm2.FILE
    params = llama.from_published(files.read_tensors(path), config)["params"]
    return config, jax.tree.map(np.asarray, params)


class Ours:
    """The engine under LoadGen.

    Attributes:
        slots: of the engine.
    """

    def __init__(self, data_dir: Path, slots: int) -> None:
        from mlperf_jax import platform as platforms

        platforms.configure("cpu")
        from mlperf_jax.inference.token_sut import TokenReplica
        from mlperf_jax.parallel.mesh import single_device_layout
        from mlperf_jax.precision import POLICIES
        from mlperf_jax.tokens.programs import Programs, Sizes
        from mlperf_jax.tokens.requests import Request

        config, params = _published(data_dir)
        sizes = Sizes(
            slots=slots, pages=1 + slots * LENGTH // PAGE * 3 // 4, page=PAGE, length=LENGTH, chunks=CHUNKS
        )
        programs = Programs(
            config, params, POLICIES["float32"], sizes=sizes, ends=(), layout=single_device_layout()
        )
        programs.compile()
        self.slots, self._programs = slots, programs
        asked = [Request(text.prompt, text.new, text.new) for text in texts(data_dir)]
        self._requests = asked
        self._watched = _Watched(programs)
        self._replica = TokenReplica(self._watched)  # type: ignore[arg-type]  # all that the engine asks of it

    def bare_step(self) -> float:
        """Seconds of a step of all slots at work, in a plain loop: the median."""
        from mlperf_jax.tokens.programs import Chunk

        pages, asked = 1, self._requests
        for slot in range(self.slots):
            prompt = asked[slot % len(asked)]
            count = min(LENGTH // PAGE * 3 // 4, -(-(len(prompt.prompt) + prompt.max_tokens) // PAGE))
            chunk = Chunk(prompt, slot, 0, len(prompt.prompt), range(pages, pages + count))
            self._programs.prefill(chunk)
            pages += count
        times = []
        for _ in range(12):
            began = time.perf_counter()
            np.asarray(self._programs.step(self.slots))
            times.append(time.perf_counter() - began)
        for slot in range(self.slots):
            self._programs.stop(slot)
        return float(np.median(times))

    def offline(self) -> dict[str, Any]:
        """All texts at once."""
        self._watched.forget()
        began = time.perf_counter()
        metrics = self._run("Offline", min_query_count=PROMPTS)
        wall = time.perf_counter() - began
        return {
            "tokens_per_s": metrics["result_tokens_per_second"],
            "samples_per_s": metrics["result_samples_per_second"],
            "in_programs": self._watched.busy_s() / wall,
            "valid": metrics["result_validity"] == "VALID",
        }

    def one_by_one(self, every: int) -> dict[str, Any]:
        """Each `every`th text, one after the other."""
        from mlperf_jax.tokens.answers import answers

        chosen = self._requests[::every]
        began = time.perf_counter()
        told = sum(len(answers(self._programs, [request])[0]) for request in chosen)
        return {"tokens_per_s": told / (time.perf_counter() - began)}

    def server(self, qps: float, seconds: float, queries: int, step: float) -> dict[str, Any]:
        """Texts that arrive at a rate; a token may take three steps of so many seconds."""
        metrics = self._run(
            "Server",
            server_target_qps=qps,
            min_duration_ms=round(1000 * seconds),
            min_query_count=queries,
            ttft_latency=2_000_000_000,
            tpot_latency=round(3e9 * step),
        )
        found = {"qps": qps, "bare_step_s": step, "valid": metrics["result_validity"] == "VALID"}
        found |= {"tokens_per_s": metrics["result_completed_tokens_per_second"]}
        found |= {"queries": metrics["result_query_count"], "early_stopping": metrics["early_stopping_met"]}
        for share in ("50.00", "99.00"):
            name = share.split(".")[0]
            found[f"first_ms_p{name}"] = metrics[f"result_first_token_{share}_percentile_latency_ns"] / 1e6
            found[f"each_ms_p{name}"] = metrics[f"result_time_per_output_token_{share}_percentile_ns"] / 1e6
        return found

    def _run(self, scenario: str, **fields: Any) -> dict[str, Any]:
        import loadgen_py as lg
        from mlperf_jax.inference.token_sut import TokenSamples, TokenSut

        samples = TokenSamples("descriptions", PROMPTS, PROMPTS, self._requests.__getitem__)

        settings = lg.TestSettings(getattr(lg.TestScenario, scenario), use_token_latencies=True)
        settings.min_duration_ms = 0
        for name, value in fields.items():
            setattr(settings, name, value)
        with tempfile.TemporaryDirectory() as folder:
            logs = lg.LogSettings(log_output=lg.LogOutputSettings(outdir=folder), enable_trace=False)
            with TokenSut("engine", [self._replica], samples, first_tokens=scenario != "Offline") as sut:
                return lg.run(sut, samples, settings, logs).metrics


class _Watched:
    """Programs that tell how long they ran: a thread waits for each, and notes when it was there."""

    def __init__(self, programs: Any) -> None:
        self._programs = programs
        self.sizes, self.vocabulary, self.ends = programs.sizes, programs.vocabulary, programs.ends
        self._busy, self._last = 0.0, 0.0
        self._asked: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._watch, daemon=True).start()

    def prefill(self, chunk: Any) -> Any:
        return self._noted(self._programs.prefill, chunk)

    def step(self, slots: int) -> Any:
        return self._noted(self._programs.step, slots)

    def stop(self, slot: int) -> None:
        self._programs.stop(slot)

    def forget(self) -> None:
        self._busy = 0.0

    def busy_s(self) -> float:
        """Seconds in which a program was under way, since it was asked to forget."""
        return self._busy

    def _noted(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        began = time.perf_counter()
        handle = ask(*arguments)
        self._asked.put((began, handle))
        return handle

    def _watch(self) -> None:
        while True:
            began, handle = self._asked.get()
            handle.block_until_ready()
            done = time.perf_counter()
            self._busy += done - max(began, self._last)
            self._last = done


class Theirs:
    """`transformers`' generate over batches.

    Texts are sorted by the number of new tokens, then by the length of the prompt: a batch runs on to its longest answer, which costs it
    more than padding of prompts does.
    """

    def __init__(self, data_dir: Path, threads: int) -> None:
        import torch
        import transformers  # no part of this environment

        torch.set_num_threads(threads)
        config, params = _published(data_dir)
        self._model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.width,
                intermediate_size=config.mlp_width,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_key_heads,
                head_dim=config.head_width,
                rms_norm_eps=config.epsilon,
                rope_theta=config.rope_theta,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
                tie_word_embeddings=True,
                max_position_embeddings=2048,
            )
        )
        found = {name: torch.from_numpy(array) for name, array in _named(params, config.num_layers)}
        missing, unexpected = self._model.load_state_dict(found, strict=False)
        if unexpected or set(missing) - {"lm_head.weight"}:
            raise RuntimeError(f"the weights do not fit: {missing}, {unexpected}")
        self._model.eval()
        self._texts = texts(data_dir)

    def offline(self, batch: int, every: int = 1) -> dict[str, Any]:
        """All texts in batches, or each `every`th of them."""
        import torch

        chosen = sorted(self._texts[::every], key=lambda text: (text.new, len(text.prompt)))
        began = time.perf_counter()
        with torch.inference_mode():
            for start in range(0, len(chosen), batch):
                self.answered(chosen[start : start + batch])
        wall = time.perf_counter() - began
        return {"batch": batch, "tokens_per_s": sum(text.new for text in chosen) / wall}

    def answered(self, some: Sequence[Text]) -> list[list[int]]:
        """New tokens of each."""
        import torch

        longest, most = max(len(text.prompt) for text in some), max(text.new for text in some)
        tokens = np.zeros((len(some), longest), np.int64)
        there = np.zeros_like(tokens)
        for row, text in enumerate(some):
            tokens[row, longest - len(text.prompt) :] = text.prompt
            there[row, longest - len(text.prompt) :] = 1
        found = self._model.generate(
            input_ids=torch.from_numpy(tokens),
            attention_mask=torch.from_numpy(there),
            do_sample=False,
            min_new_tokens=most,
            max_new_tokens=most,
            pad_token_id=0,
        )
        return [row[longest : longest + text.new] for row, text in zip(found.tolist(), some, strict=True)]


def _named(params: Any, num_layers: int) -> Any:
    """Parameters under the names of `transformers`, whose kernels are [out, in]."""
    yield "model.embed_tokens.weight", params["embedding"]
    yield "model.norm.weight", params["norm"]["scale"]
    layers = params["layers"]
    parts = [("self_attn", "attention", name, f"{name[0]}_proj") for name in ("query", "key", "value", "out")]
    parts += [("mlp", "mlp", name, f"{name}_proj") for name in ("gate", "up", "down")]
    for n in range(num_layers):
        head = f"model.layers.{n}"
        yield f"{head}.input_layernorm.weight", layers["attention_norm"]["scale"][n]
        yield f"{head}.post_attention_layernorm.weight", layers["mlp_norm"]["scale"][n]
        for theirs, ours, name, linear in parts:
            kernel = layers[ours][name]["kernel"][n]
            kernel = (
                kernel.reshape(-1, kernel.shape[-1]) if name == "out" else kernel.reshape(kernel.shape[0], -1)
            )
            yield f"{head}.{theirs}.{linear}.weight", np.ascontiguousarray(kernel.T)


class Side:
    """A side in a process of its own; `ask` calls one of its methods there."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self._process.start()

    def ask(self, name: str, *arguments: Any) -> Any:
        """What a method gives, or the value of an attribute.

        Raises:
            RuntimeError: it failed there.
        """
        self._pipe.send((name, arguments))
        failed, found = self._pipe.recv()
        if failed:
            raise RuntimeError(found)
        return found


def _serve(pipe: Any, make: Callable[..., Any], arguments: Any) -> None:
    side = None
    while True:
        name, given = pipe.recv()
        try:
            side = side or make(*arguments)
            found = getattr(side, name)
            pipe.send((False, found(*given) if callable(found) else found))
        except Exception as error:
            pipe.send((True, repr(error)))
