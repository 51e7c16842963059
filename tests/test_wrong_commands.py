"""Wrong command lines: each ends in one sentence, status 2, and leaves nothing behind."""

import importlib

import pytest

RUN = "--workload=resnet50 --platform=cpu --synthetic_data --data_dir={0} --results_dir={0}/results "
MODEL = "--platform=cpu --results_dir={0}/none "
CASES = [
    # What other programs call it.
    ("main", "--batch_size=32", "did you mean --config.batch_size?"),
    ("main", "--batch-size 32", "did you mean --config.batch_size?"),
    ("main", "--epochs=3", "did you mean --config.max_epochs?"),
    ("main", "--lr=0.1", "did you mean --config.optimizer.base_lr?"),
    ("main", "--learning-rate=0.1", "did you mean --config.optimizer.base_lr?"),
    ("main", "--gpus=8", "all devices that --platform=gpu (or tpu) shows are used"),
    ("main", "--num_gpus=8", "CUDA_VISIBLE_DEVICES"),
    ("main", "--resume", "the same command again continues an unfinished run"),
    ("main", "--resume-from=x", "the same command again continues an unfinished run"),
    ("main", "--output_dir=x", "did you mean --results_dir?"),
    ("main", "--model=resnet50", "did you mean --workload?"),
    ("main", "--device=cuda", "did you mean --platform?"),
    ("main", "--fp16", "did you mean --config.precision?"),
    ("compare", "--epochs=3", "did you mean --config.max_epochs?"),
    ("plan", "--lr=3", "did you mean --config.optimizer.base_lr?"),
    # Numbers that nothing can hold.
    (
        "main",
        RUN + "--cpu_devices=100000",
        "--cpu_devices=100000: 100000 is not an integer in the range [0, 1024]",
    ),
    ("compare", "--workload=resnet50 --cpu_devices=100000", "in the range [0, 1024]"),
    ("main", RUN + "--seed=99999999999999999999", "--seed=99999999999999999999: "),
    ("main", RUN + "--config.batch_size=" + "9" * 400, "--config.batch_size="),
    ("main", RUN + "--qps=1e9", "--qps goes with --scenario"),
    ("main", RUN + "--scenario=Server --time=inf", "--time=inf"),
    ("main", RUN + "--scenario=Server --qps=nan", "--qps=nan"),
    ("main", RUN + "--visualize=1000", "--visualize=1000: 1000 is not an integer in the range [0, 64]"),
    ("prepare", "--workload=resnet50 --fake=99999999999999 --data_dir={0}/new", "would take at least"),
    ("report", "{0} --serve --port=99999", "--port=99999"),
    # Processes.
    ("main", RUN + "--coordinator=foo:bar --num_processes=2 --process_id=0", "is not of the form host:port"),
    ("main", RUN + "--coordinator=foo --num_processes=2 --process_id=0", "is not of the form host:port"),
    ("main", RUN + "--coordinator=foo:99999 --num_processes=2 --process_id=1", "ports go from 1 to 65535"),
    (
        "main",
        RUN + "--coordinator=127.0.0.1:9 --num_processes=2 --process_id=5",
        "--process_id=5 of --num_processes=2",
    ),
    ("main", RUN + "--num_processes=2", "--coordinator, --num_processes and --process_id go together"),
    ("compare", "--workload=resnet50 --coordinator=foo:bar --num_processes=2 --process_id=1", "host:port"),
    # Names and places.
    ("main", "--workload=resnet50 --sharding={0}/none.toml", "none.toml"),
    ("main", RUN + "--org=a/b", "The organisation's name 'a/b' cannot name a folder"),
    ("main", RUN + "--scenario=Offline --weights={0}/none", "There are no imported weights in"),
    ("main", "main --workload=resnet50", "'main' is not a flag"),
    ("prepare", "--workload=resnet50 --config.batch_size=3", "--config.KEY=value is for runs"),
    ("prepare", "--workload=minigo --fake=5", "makes its own data; leave --fake out"),
    ("plan", "--workload=resnet50", "--topology is missing"),
    ("plan", "--workload=resnet50 --topology=v5e:0x0", "v5e:0x0"),
    ("plan", "--workload=resnet50 --topology=v5e:100000x100000", "v5e:100000x100000"),
    ("plan", "--workload=resnet50 --topology=cray:1x1", "cray"),
    ("plan", "--workload=resnet50 --topology=v5e:2x2 --sharding=,", "There is no --sharding="),
    ("report", "", "Name at least one folder"),
    ("report", "{0} --metric=seconds", "--metric=seconds: value should be one of"),
    ("check", "", "Name one folder"),
    ("check", "{0}/none", "is no folder"),
    ("check", "{0} --ruleset=99", "99"),
    ("package", "--training={0} --org=acme --division=closed", "--out is missing"),
    ("package", "--training={0} --inference={0}", "Give one of --training=RESULTS and --inference=RESULTS"),
    ("package", "--training={0}/none --org=acme --division=open --out={0}/out", "is no folder"),
    ("import_weights", "--workload=resnet50", "--from is missing"),
    ("import_weights", "--workload=resnet50 --from={0}/none.pth --to={0}/to", "none.pth"),
    ("serve", MODEL, "--workload is missing"),
    ("serve", MODEL + "--workload=resnet50", "does not answer token by token"),
    ("serve", MODEL + "--workload=llama31_8b --port=65536", "in the range [0, 65535]"),
    (
        "serve",
        MODEL + "--workload=llama31_8b --port=0 --host=192.0.2.1",
        "Port 0 of 192.0.2.1 cannot be used",
    ),
    ("serve", MODEL + "--workload=llama31_8b --host=nowhere.invalid", "is no address of this machine"),
    ("serve", MODEL + "--workload=llama31_8b --api_key=", "--api_key must be of letters and digits"),
    ("serve", MODEL + "--workload=llama31_8b --port=0", "There is no trained mini model"),
    ("gtp", MODEL + "--resign_below=2", "gives up every game"),
    ("gtp", MODEL, "There is no trained mini model"),
    ("predict_moves", MODEL, "--sgf_dir is missing"),
    ("predict_moves", MODEL + "--sgf_dir={0}/none", "There is no folder"),
    ("__main__", "train --workload=resnet50", "There is no command 'train'; there are main, prepare"),
]


@pytest.mark.parametrize(("command", "line", "said"), CASES, ids=[f"{c} {line}"[:60] for c, line, _ in CASES])
def test_a_wrong_command_line_is_told_so_in_a_sentence(tmp_path, capsys, monkeypatch, command, line, said):
    for name in ("XLA_FLAGS", "JAX_PLATFORMS"):  # what a command decides about devices does not outlive it
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"mlperf_jax.{command}")
    assert module.main(line.format(tmp_path).split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("mlperf_jax: ") and err.count("\n") == 1, (out, err)
    assert said in err
    assert not list(tmp_path.iterdir())
