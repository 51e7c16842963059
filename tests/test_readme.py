"""What README.md shows must work: its flags, files, modules and names."""

import importlib
import re

import pytest

from benchmarks import run
from mlperf_jax import (
    check,
    cli,
    compare,
    gtp,
    import_weights,
    main,
    package,
    plan,
    predict_moves,
    prepare,
    registry,
    report,
    serve,
)
from mlperf_jax import config as configs
from mlperf_jax.parallel import mesh
from tests import door

README = (door.ROOT / "README.md").read_text()
LINES = re.findall(r"^(?:python -m|\./run_).*$", README, re.MULTILINE)
COMMANDS = [line.split("#")[0].split() for line in LINES]


def test_there_are_commands():
    assert ["./run_and_time.sh", "--workload=resnet50", "--platform=cpu"] in COMMANDS
    assert "./run_tests.sh" in README


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_its_commands_parse(command):
    if command[0] == "./run_tests.sh":  # hands its arguments to pytest
        return
    script = command[0] == "./run_and_time.sh"
    module = main if script else importlib.import_module(command[2])
    arguments = command[1 if script else 3 :]
    overrides, _ = cli.parse(module.FLAGS, arguments)
    if module is main and main.FLAGS.workload:
        preset = main.FLAGS.preset or configs.default_preset(main.FLAGS.platform)
        configs.resolve(configs.base_config(main.FLAGS.workload, preset), overrides)
        mesh.find_strategy(main.FLAGS.sharding)


def test_flags_that_it_mentions_exist():
    known = {
        name
        for module in (
            main,
            prepare,
            plan,
            compare,
            report,
            check,
            package,
            import_weights,
            gtp,
            predict_moves,
            serve,
            run,
        )  # fmt: skip
        for name in module.FLAGS
    }
    resolved = {preset: configs.base_config("resnet50", preset).to_dict() for preset in configs.PRESETS}
    for name in re.findall(r"--([a-z_]+(?:\.[a-z_]+)*)", README):
        if name.startswith("config."):
            part = resolved["closed"]
            for key in name.split(".")[1:]:
                assert key in part, name
                part = part[key]
        else:
            assert name in known, name


def test_files_that_it_links_and_lists_exist():
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (door.ROOT / path).exists(), path
    architecture = README.partition("## Architecture")[2]
    for path in re.findall(r"^([a-z_]+(?:/[a-z_]+)*(?:/|\.py))\s", architecture, re.MULTILINE):
        assert (door.ROOT / path).exists(), path


def test_every_workload_stands_in_its_table():
    for name in registry.names():
        assert re.search(rf"^\| `{name}` \|", README, re.MULTILINE), name


def test_nothing_is_left_to_fill_in():
    assert "@@" not in README
