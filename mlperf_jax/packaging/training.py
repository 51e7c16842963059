"""Packs training results: ORG/{results,systems,benchmarks}, as mlperf_logging's package_checker wants them."""

from __future__ import annotations

import json
from pathlib import Path

from mlperf_jax.errors import UserError
from mlperf_jax.judging import official
from mlperf_jax.judging.tree import judge_tree
from mlperf_jax.packaging.package import Package, tell_findings
from mlperf_jax.packaging.systems import write_system
from mlperf_jax.results.own_runs import run_folder
from mlperf_jax.results.system import TRAINING_FIELDS
from mlperf_jax.rounds.collect import Reader, Result
from mlperf_jax.rounds.objects import command_in, read_object


def pack_training(package: Package, results_dir: Path, *, org: str, division: str) -> list[str]:
    """Fills a package with the runs of a division.

    Args:
        package: to be filled.
        results_dir: RESULTS of `mlperf_jax.main`.
        org: who submits.
        division: "closed" or "open"; runs that logged another are left out.

    Returns:
        The commands by which the official checkers judge the package, for its place "{out}".

    Raises:
        UserError: there are no such runs.
    """
    results, problems = Reader().read([results_dir])
    chosen = [result for result in results if result.division == division]
    if not chosen:
        others = sorted({result.division for result in results})
        found = f"results of division {', '.join(others)} alone" if others else "no training results"
        raise UserError(f"{results_dir} holds {found}; a package of {division} needs runs that logged it.")
    for problem in problems:
        package.notes.append(f"{problem.path.name} cannot be read and is left out: {problem.reason}")
    commands: list[str] = []
    for name in sorted({result.system for result in chosen}):
        write_system(
            package,
            f"{org}/systems/{name}.json",
            results_dir / "systems" / f"{name}.json",
            org=org,
            division=division,
            wanted=TRAINING_FIELDS,
        )
    for benchmark in sorted({result.rules.key for result in chosen}):
        mine = [result for result in chosen if result.rules.key == benchmark]
        package.copy_sources(f"{org}/benchmarks/{benchmark}/implementations/mlperf_jax")
        package.write(
            f"{org}/benchmarks/{benchmark}/README.md",
            _readme(benchmark, mine),
            source="status.json of the runs",
        )
        for result in mine:
            _pack_result(package, result, org=org)
        ruleset = official.find_ruleset(benchmark, mine[0].round)
        if ruleset is None:
            package.lacks(f"a ruleset of {benchmark}", "mlperf-logging has no rules for this benchmark")
            continue
        check = f"python -m mlperf_logging.package_checker {{out}}/{org} training {ruleset}"
        if check not in commands:
            commands.append(check)
    rulesets = {command.rsplit(" ", 1)[1] for command in commands}
    if len(rulesets) > 1:
        told = f"benchmarks of rulesets {', '.join(sorted(rulesets))} are in one package"
        package.notes.append(f"{told}: each round takes those of its own")
    tell_findings(package, list(judge_tree(package.root / org).findings))
    return commands


def _pack_result(package: Package, result: Result, *, org: str) -> None:
    place = f"{org}/results/{result.system}/{result.rules.key}"
    packed = 0
    for log in result.logs:
        why = "was resumed, and has no time by the rules" if log.resumed else ""
        why = why or ("has no end" if log.minutes is None else "")
        if why:
            package.notes.append(f"{result.system}/{result.rules.key}/{log.path.name} {why}: left out")
            continue
        package.copy(log.path, f"{place}/{log.path.name}")
        packed += 1
        said = str(log.value("submission_org"))
        if said != org:
            package.lacks(
                f"{place}/{log.path.name}, submission_org {org}",
                f"the log says {said}, and nothing is rewritten; submit as --org={said}",
            )
    required = result.rules.required_runs(result.round)
    if packed < required:
        package.lacks(f"{place}: {required - packed} of {required} runs", "make these too, and pack again")
    # What the runs of a system were made with stands beside the code.
    folder = next(filter(None, (run_folder(log.path) for log in result.logs)), None)
    target = f"{org}/benchmarks/{result.rules.key}/implementations/mlperf_jax/systems/{result.system}"
    for name in ("config.json", "versions.json", "devices.json"):
        if folder and (folder / name).is_file():
            package.copy(folder / name, f"{target}/{name}")


def _readme(benchmark: str, results: list[Result]) -> str:
    lines = [f"# {benchmark}, implemented in JAX", "", "How each run was made:", ""]
    for result in results:
        for log in result.logs:
            folder = run_folder(log.path)
            status = read_object(folder / "status.json") if folder else {}
            command = command_in(status) or "not recorded"
            lines.append(f"- {result.system}, {log.path.name}: `{command}`")
    labels = sorted({label for result in results for label in result.labels})
    lines += ["", "What is said of all of them: " + json.dumps(labels), ""]
    return "\n".join(lines)
