"""Serves a trained language model over HTTP, as OpenAI's completions and chats, for any load generator that speaks with such servers.

    python -m mlperf_jax.serve --workload=llama31_8b --platform=cpu
    python -m mlperf_jax.serve --workload=llama31_8b --platform=cpu --port=9000 --config.inference.slots=32
    curl http://127.0.0.1:8000/v1/completions -H "Content-Type: application/json" \\
        -d '{"prompt": "The kernel", "max_tokens": 20, "temperature": 0, "stream": true}'

A text, prompt and answer, has as many tokens as --config.inference.prompt and max_tokens together. docs/serving.md says what is offered.
Ctrl-C or SIGTERM gives answers under way ten seconds more. Exit status: 2 something to mend, 128 + N stopped by signal N.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlperf_jax import cli, common_flags, compilation_cache
from mlperf_jax import platform as platforms
from mlperf_jax.errors import UserError

if TYPE_CHECKING:
    from mlperf_jax.tokens.openai.app import Terms
    from mlperf_jax.tokens.programs import Programs
    from mlperf_jax.workload import TokenWorkload

_PACKAGES = ("uvicorn", "starlette", "jinja2")
FLAGS = cli.define(
    common_flags.PLATFORM,
    common_flags.PRESET,
    cli.text(
        "workload", "Whose model to serve; a name that main's --list shows, or your own package.module:Name."
    ),
    cli.text("results_dir", "Where the newest trained model is looked for.", "results"),
    cli.text("checkpoint", "A training run's folder, instead of the newest one."),
    cli.text("weights", "A folder that import_weights wrote, instead."),
    cli.text("tokenizer", "A tokenizer.json, where the workload's data has none or the model has another."),
    cli.text("data_dir", "Where prepared data lies; default $MLPERF_JAX_DATA or ~/.cache/mlperf_jax."),
    cli.switch("prepare", "First fetch or check the data, where that was not done yet."),
    cli.switch("synthetic_data", "Do without the data, and its tokenizer."),
    cli.text("host", "The address to serve at; others than this machine's own let others in.", "127.0.0.1"),
    cli.integer("port", "Of it; 0 any that is free.", 8000, most=65535),
    cli.integer("queue", "So many requests may wait for a slot; further ones are told to come again.", 1024),
    cli.number("timeout", "Seconds that a request may take.", 600.0, least=0.001),
    cli.text("api_key", "Serve only who sends this key."),
    cli.text("sharding", "How the model lies on the devices, as main has it.", "dp"),
    common_flags.MESH,
    common_flags.COMPILATION_CACHE,
    common_flags.CPU_DEVICES,
    cli.HELP,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return cli.run(_command, argv, interrupted="nothing was served")


def _command(arguments: list[str]) -> int:
    overrides = cli.parse_flags(FLAGS, arguments, doc=__doc__)
    if not FLAGS.workload:
        raise UserError("--workload is missing; give a language model's, as --workload=llama31_8b.")
    if FLAGS.api_key is not None and not (FLAGS.api_key.isascii() and FLAGS.api_key.isalnum()):
        raise UserError("--api_key must be of letters and digits; leave it out to serve everybody.")
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"Serving needs {', '.join(missing)}; install it with: pip install -e '.[serve]' -c constraints.txt"
        )
    platforms.configure(FLAGS.platform, cpu_devices=FLAGS.cpu_devices)
    compilation_cache.use(FLAGS.compilation_cache)
    from mlperf_jax import registry
    from mlperf_jax.tokens.openai import server
    from mlperf_jax.tokens.openai.app import make_app
    from mlperf_jax.tokens.openai.desk import Desk
    from mlperf_jax.workload import ServedWorkload, TokenWorkload

    if not issubclass(registry.find(registry.served(FLAGS.workload), ServedWorkload), TokenWorkload):
        raise UserError(
            f"{FLAGS.workload} does not answer token by token; serve a language model, as --workload=llama31_8b."
        )
    with server.stopped_by_signals(), server.bound(FLAGS.host, FLAGS.port) as listening:
        workload, programs, described = _open(overrides)
        desk = Desk(programs, queue=FLAGS.queue)
        terms = _terms(workload, programs[0].vocabulary, server.own_names(listening))
        for one in programs:
            one.compile()

        def ready() -> None:
            where = server.url(listening)
            print(f"serving {described} as {terms.model} at {where}/v1 (Ctrl-C ends it)", flush=True)

        server.serve(make_app(desk, terms), desk, listening, ready=ready)
    return 0


def _open(overrides: Sequence[str]) -> tuple[TokenWorkload, list[Programs], str]:
    """The workload, programs on each device or over all of them, and what model it is.

    Raises:
        UserError: there is none.
    """
    import input_pipelines
    from mlperf_jax.inference.options import InferOptions
    from mlperf_jax.inference.replicas import placed
    from mlperf_jax.inference.trained import open_model
    from mlperf_jax.parallel import mesh
    from mlperf_jax.registry import served
    from mlperf_jax.workload import TokenWorkload

    options = cli.record(
        InferOptions,
        FLAGS,
        workload=served(FLAGS.workload),
        preset=common_flags.preset(FLAGS),
        results_dir=Path(FLAGS.results_dir),
        data_dir=Path(FLAGS.data_dir).expanduser() if FLAGS.data_dir else input_pipelines.default_data_dir(),
        overrides=tuple(overrides),
    )
    strategy = mesh.find_strategy(FLAGS.sharding)
    asked = mesh.parse_mesh(FLAGS.mesh) if FLAGS.mesh else {}
    workload, model = open_model(options)
    assert isinstance(workload, TokenWorkload)
    programs = [
        workload.token_programs(state, layout) for state, layout in placed(workload, model, strategy, asked)
    ]
    return workload, programs, model.description


def _terms(workload: TokenWorkload, vocabulary: int, hosts: tuple[str, ...] | None) -> Terms:
    from mlperf_jax.tokens.openai.app import Terms
    from mlperf_jax.tokens.openai.chat import Template, find_template
    from mlperf_jax.tokens.openai.detokenizer import Numbers, Subwords

    path = Path(FLAGS.tokenizer) if FLAGS.tokenizer else workload.tokenizer_file
    template = find_template(path) if path else None
    return Terms(
        model=FLAGS.workload,
        vocabulary=Subwords(path, vocabulary) if path else Numbers(),
        template=Template(*template) if template else None,
        timeout_s=FLAGS.timeout,
        api_key=FLAGS.api_key,
        hosts=hosts,
    )


if __name__ == "__main__":
    sys.exit(main())
