"""A small decoder, trained and then served by the commands as people type them, tells what the engine tells."""

import contextlib
import http.client
import json
import re
import signal
import string

import numpy as np

from mlperf_jax.inference.options import InferOptions
from mlperf_jax.inference.trained import open_model
from mlperf_jax.parallel import mesh
from mlperf_jax.tokens.engine import Engine
from mlperf_jax.tokens.requests import Request
from tests import door
from tests.tokens.openai.served_simulated import events, text_of
from tests.tokens.simulated import Collected
from tests.toys_language import VOCABULARY

TOY = "--workload=tests.toys_language:SmallTelling"
LETTERS = string.ascii_letters[:VOCABULARY]
PROMPTS = ["abcdef", "a", "ceg", "Cbzyx"]


def letters_file(folder):
    """A tokenizer of a letter a token, with a template of chats beside it."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    found = tokenizers.Tokenizer(models.BPE({letter: n for n, letter in enumerate(LETTERS)}, []))
    found.pre_tokenizer, found.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    path = folder / "tokenizer.json"
    found.save(str(path))
    (folder / "chat_template.jinja").write_text("{% for one in messages %}{{ one.content }}{% endfor %}")
    return path


def told_by_the_engine(results):
    """Texts, without what ends them."""
    options = InferOptions(TOY.partition("=")[2], "mini", "cpu", results)
    workload, model = open_model(options)
    layout = mesh.single_device_layout()
    programs = workload.token_programs(model.load(workload, layout), layout)
    programs.compile()
    heard = [Collected() for _ in PROMPTS]
    engine = Engine(programs)
    for prompt, one in zip(PROMPTS, heard, strict=True):
        engine.submit(Request(np.array([LETTERS.index(letter) for letter in prompt]), 8), one)
    while engine.round():
        pass
    return ["".join(LETTERS[token] for token in one.tokens if token not in programs.ends) for one in heard]


def asked(port, path, body):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=600)) as connection:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == 200, content
        return events(content) if body.get("stream") else json.loads(content)


def test_a_trained_model_is_served(tmp_path):
    results = tmp_path / "results"
    trained = door.run(
        door.ROOT, TOY, "--platform=cpu", f"--results_dir={results}", "--seed=1", **door.LIGHTLY
    )
    assert trained.returncode == 1, trained.stderr  # no loss falls to its target of 0
    flags = (
        TOY,
        "--platform=cpu",
        f"--results_dir={results}",
        f"--tokenizer={letters_file(tmp_path)}",
        "--port=0",
    )
    serving = door.start(door.ROOT, *flags, module="serve", **door.LIGHTLY)
    try:
        expected = told_by_the_engine(results)
        line = serving.stdout.readline()
        found = re.fullmatch(
            r"serving .*/run_0, step 40 as \S+ at http://127\.0\.0\.1:(\d+)/v1 \(Ctrl-C ends it\)\n", line
        )
        assert found, (line, serving.poll() is not None and serving.stderr.read())
        port = int(found[1])
        greedy = {"temperature": 0, "max_tokens": 8, "min_tokens": 1}
        whole = asked(port, "/v1/completions", {"prompt": PROMPTS} | greedy)
        assert [one["text"] for one in whole["choices"]] == expected and len(set(expected)) > 1
        for prompt, text in zip(PROMPTS, expected, strict=True):
            body = {"prompt": [LETTERS.index(letter) for letter in prompt], "stream": True} | greedy
            assert text_of(asked(port, "/v1/completions", body)) == text
            body = {"messages": [{"role": "user", "content": prompt}], "stream": True} | greedy
            assert text_of(asked(port, "/v1/chat/completions", body)) == text
        drawn = {"prompt": "abc", "temperature": 1.5, "top_p": 0.9, "seed": 7, "ignore_eos": True}
        one, other = (asked(port, "/v1/completions", drawn)["choices"][0]["text"] for _ in range(2))
        assert one == other and len(one) == 13  # as many as there is room for
        serving.send_signal(signal.SIGINT)
        ended = door.finish(serving)
        assert ended.returncode == 130 and ended.stderr.endswith("mlperf_jax: Stopped by SIGINT.\n"), (
            ended.stderr
        )
        assert "Traceback" not in ended.stderr
    finally:
        serving.kill()
