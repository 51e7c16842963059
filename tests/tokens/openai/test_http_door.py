"""The HTTP door on a real server over a simulated model: what is answered, what is refused, and that every place is free afterwards."""

import http.client
import json
import socket
import threading
import time

import numpy as np
import pytest

from mlperf_jax.tokens.openai import server
from mlperf_jax.tokens.openai.chat import Template
from mlperf_jax.tokens.programs import Sizes
from mlperf_jax.tokens.requests import Request
from tests.tokens.openai.served_simulated import (
    SIZES,
    Gated,
    Letters,
    events,
    served,
    text_of,
    wait_for,
)  # fmt: skip
from tests.tokens.simulated import END, Simulated

USAGE = {"stream_options": {"include_usage": True}}


@pytest.fixture(scope="module")
def device():
    return Gated(SIZES)


@pytest.fixture(scope="module")
def client(device):
    with served(device, timeout_s=20.0) as one:
        yield one
        one.wait_until_idle()


def told(device, prompt, most, least=0):
    """What the simulated model says to a prompt of tokens: text, tokens, why it ends."""
    tokens = device.told(Request(np.array(prompt), most, least))
    text = "".join(f" {token}" for token in tokens if token != END)
    return text, len(tokens), "stop" if tokens[-1] == END else "length"


def test_answers_are_the_models_streamed_or_not(client, device):
    random = np.random.default_rng(0)
    ended = set()
    for _ in range(20):
        prompt = random.integers(1, 1000, size=random.integers(1, 30)).tolist()
        most = int(random.integers(1, 30))
        fields = {"max_tokens": most, "temperature": 0, "seed": 3, "model": "toy"}
        text, count, why = told(device, prompt, most)
        usage = {
            "prompt_tokens": len(prompt),
            "completion_tokens": count,
            "total_tokens": len(prompt) + count,
        }
        whole = client.complete(prompt, **fields)
        assert whole["object"] == "text_completion" and whole["model"] == "toy" and whole["usage"] == usage
        assert whole["choices"] == [{"index": 0, "text": text, "logprobs": None, "finish_reason": why}]
        found = client.complete(prompt, stream=True, **USAGE, **fields)
        assert text_of(found) == text
        assert found[-3]["choices"][0]["finish_reason"] == why and found[-2]["usage"] == usage
        assert found[-2]["choices"] == [] and all(one["usage"] is None for one in found[:-2])
        assert "usage" not in client.complete(prompt, stream=True, **fields)[0]
        ended.add(why)
    assert ended == {"stop", "length"}


def test_a_batch_of_prompts_has_a_choice_each(client, device):
    prompts = [[n, n + 1] for n in range(1, 9)]
    whole = client.complete(prompts, max_tokens=9)
    answers = [told(device, prompt, 9) for prompt in prompts]
    assert [(one["index"], one["text"]) for one in whole["choices"]] == [
        (n, text) for n, (text, *_) in enumerate(answers)
    ]
    assert whole["usage"]["completion_tokens"] == sum(count for _, count, _ in answers)
    assert whole["usage"]["prompt_tokens"] == 16
    found = client.complete(prompts, max_tokens=9, stream=True)
    for n, (text, _, why) in enumerate(answers):
        own = [one["choices"][0] for one in found[:-1] if one["choices"][0]["index"] == n]
        assert "".join(one["text"] for one in own) == text and own[-1]["finish_reason"] == why


def test_what_ends_a_text(client, device):
    text, count, _ = told(device, [7], 40, 40)
    assert count == 40
    fields = {"max_tokens": 40, "ignore_eos": True}
    assert client.complete([7], **fields)["choices"][0]["text"] == text
    assert client.complete([7], max_tokens=40, min_tokens=40)["choices"][0]["text"] == text
    # A stop string over the border of two tokens: the third token's last digit, the fourth's first.
    third, fourth = text.split(" ")[3:5]
    stop = f"{third[-1]} {fourth[0]}"
    expected = text[: text.index(stop)]
    whole = client.complete([7], stop=["nowhere", stop], **fields)
    assert whole["choices"][0] | {"text": expected, "finish_reason": "stop"} == whole["choices"][0]
    numbers = text.split(" ")[1:]
    least = next(n for n in range(41) if stop in "".join(f" {one}" for one in numbers[:n]))
    assert whole["usage"]["completion_tokens"] == least
    assert text_of(client.complete([7], stop=stop, stream=True, **fields)) == expected
    client.wait_until_idle()


def test_chats_have_their_own_form(device):
    vocabulary = Letters([b"", *(b"%d|" % n for n in range(999))])
    templated = Template(
        "{{ bos_token }}{% for one in messages %}{{ one.content }}{% endfor %}", {"bos_token": "!"}
    )
    asked = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}
    for template, prompt in ((None, "user: Hi\nassistant:"), (templated, "!Hi")):
        with served(device, vocabulary=vocabulary, template=template) as client:
            tokens = device.told(Request(np.frombuffer(prompt.encode(), np.uint8), 64 - len(prompt)))
            text = b"".join(map(vocabulary.spelled, tokens)).decode()
            status, _, whole = client.ask("/v1/chat/completions", asked)
            assert status == 200 and whole["object"] == "chat.completion"
            (choice,) = whole["choices"]
            # MLCommons' client for endpoints wants `refusal` and `system_fingerprint`.
            assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
            assert whole["system_fingerprint"] is None and whole["usage"]["prompt_tokens"] == len(prompt)
            status, _, found = client.ask("/v1/chat/completions", asked | {"stream": True})
            assert found[0]["object"] == "chat.completion.chunk" and text_of(found) == text
            assert found[0]["choices"][0]["delta"]["role"] == "assistant"
            _, _, short = client.ask("/v1/chat/completions", asked | {"max_completion_tokens": 1})
            assert short["usage"]["completion_tokens"] == 1


def test_models_and_health(client):
    _, _, found = client.ask("/v1/models")
    (model,) = found["data"]
    assert model["id"] == "toy" and model["max_model_len"] == 64
    assert client.ask("/v1/models/toy")[2] == model
    for name in ("other", "../toy", "%2e%2e/etc/passwd"):
        status, _, why = client.ask(f"/v1/models/{name}")
        assert status == 404 and why["error"]["code"] == "model_not_found"
    status, headers, found = client.ask("/health")
    assert status == 200 and found == {"status": "ok"}
    assert not [name for name in headers if name.lower().startswith("access-control")]


P = {"prompt": [1, 2]}
M = {"messages": [{"role": "user", "content": "x"}]}
REFUSED = [
    ("/v1/completions", {}, 400, "prompt"),
    ("/v1/completions", {"prompt": []}, 400, "prompt"),
    ("/v1/completions", {"prompt": [[1], []]}, 400, "prompt"),
    ("/v1/completions", {"prompt": [1, "x"]}, 400, "prompt"),
    ("/v1/completions", {"prompt": [1, True]}, 400, "prompt"),
    ("/v1/completions", {"prompt": "a text"}, 400, "tokenizer is not known"),
    ("/v1/completions", {"prompt": [1, 1000]}, 400, "none of the model's 1,000"),
    ("/v1/completions", {"prompt": [-(10**40)]}, 400, "none of the model's 1,000"),
    ("/v1/completions", {"prompt": [[1], [10**40]]}, 400, "Prompt 1: "),
    ("/v1/completions", {"prompt": [1] * 65}, 400, "more than the 64"),
    ("/v1/completions", {"prompt": [[1]] * 13}, 400, "13 prompts are more than the 12"),
    ("/v1/completions", P | {"max_tokens": 0}, 400, "max_tokens"),
    ("/v1/completions", P | {"max_tokens": 10**40}, 400, "more than the 64"),
    ("/v1/completions", P | {"max_tokens": "3"}, 400, "max_tokens"),
    ("/v1/completions", P | {"max_tokens": 3.0}, 400, "max_tokens"),
    ("/v1/completions", P | {"min_tokens": 17}, 400, "min_tokens is 17"),
    ("/v1/completions", P | {"min_tokens": -1}, 400, "min_tokens"),
    ("/v1/completions", P | {"temperature": -1}, 400, "temperature is -1"),
    ("/v1/completions", P | {"temperature": 10**400}, 400, "temperature is inf"),
    ("/v1/completions", P | {"temperature": True}, 400, "temperature"),
    ("/v1/completions", P | {"top_p": 0}, 400, "top_p is 0"),
    ("/v1/completions", P | {"seed": 1.5}, 400, "seed"),
    ("/v1/completions", P | {"n": 2}, 400, "n is not offered here; leave it out, or give 1."),
    ("/v1/completions", P | {"logprobs": 0}, 400, "logprobs is not offered"),
    ("/v1/completions", P | {"echo": True}, 400, "echo is not offered"),
    ("/v1/completions", P | {"presence_penalty": 0.5}, 400, "presence_penalty is not offered"),
    ("/v1/completions", P | {"logit_bias": {"5": 1}}, 400, "logit_bias is not offered"),
    ("/v1/completions", P | {"stop": ""}, 400, "stop"),
    ("/v1/completions", P | {"stop": ["a"] * 17}, 400, "stop"),
    ("/v1/completions", P | {"stop": ["a" * 257]}, 400, "stop"),
    ("/v1/completions", P | {"stop": 5}, 400, "stop"),
    ("/v1/completions", P | {"stream": 1}, 400, "stream"),
    ("/v1/completions", P | USAGE, 400, "stream_options"),
    ("/v1/completions", P | {"ignore_eos": "yes"}, 400, "ignore_eos"),
    ("/v1/completions", P | {"model": "other"}, 404, "no model 'other'"),
    ("/v1/completions", P | {"model": {"a": 1}}, 404, "no model"),
    ("/v1/chat/completions", P, 400, "messages"),
    ("/v1/chat/completions", {"messages": []}, 400, "messages"),
    ("/v1/chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0]"),
    ("/v1/chat/completions", {"messages": [*M["messages"], {"role": "user"}]}, 400, "messages[1].content"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "text"),
    ("/v1/chat/completions", M | {"tools": [{}]}, 400, "tools is not offered"),
    ("/v1/chat/completions", M | {"logprobs": True}, 400, "logprobs is not offered here; leave it out, or give false."),
    ("/v1/chat/completions", M | {"response_format": {"type": "json_object"}}, 400, "response_format"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 1000}]}, 400, "characters is more"),
    ("/v1/embeddings", P, 404, "no '/v1/embeddings'"),
    ("/../../etc/passwd", P, 404, "here"),
]  # fmt: skip


def test_what_is_not_offered_is_refused_in_openais_form(client):
    for path, body, status, said in REFUSED:
        found, headers, why = client.ask(path, body)
        assert (found, headers["Content-Type"]) == (status, "application/json"), (path, body, why)
        error = why["error"]
        assert set(error) == {"message", "type", "param", "code"} and said in error["message"], (body, error)
        assert error["type"] == "invalid_request_error"
    neutral = {
        "n": 1, "best_of": None, "logprobs": None, "presence_penalty": 0.0, "repetition_penalty": 1.0, "top_k": -1,
        "logit_bias": {}, "echo": False, "user": "me", "unknown": [1], "seed": -(2**63), "stop": None,
    }  # fmt: skip
    assert client.complete([1, 2], max_tokens=3, **neutral)["choices"]
    client.wait_until_idle()


BROKEN = [
    b"", b"{", b"[1]", b'"a"', b"\xff\xfe", b'{"prompt": NaN}', b"[" * 100_000, b"9" * 5000,
    b'{"prompt": "\\ud800"}', b'{"prompt": [1], "temperature": Infinity}',
]  # fmt: skip


def test_bodies_that_are_no_json_or_too_large_are_refused(client):
    for raw in BROKEN:
        status, _, why = client.ask("/v1/completions", raw=raw)
        assert status == 400 and "JSON" in why["error"]["message"], (raw[:20], why)
    status, _, why = client.ask("/v1/completions", raw=b"{}", headers={"Content-Type": "text/plain"})
    assert status == 415 and "application/json" in why["error"]["message"]
    status, headers, _ = client.ask("/v1/completions", method="GET")
    assert status == 405 and headers["Allow"] == "POST"
    # Said to be large, and large in chunks of which nothing is said.
    with socket.create_connection(("127.0.0.1", client.port), 120) as said:
        head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        said.sendall(f"{head}Content-Length: 4194305\r\n\r\n".encode())
        assert said.recv(1000).startswith(b"HTTP/1.1 413 ")
    with socket.create_connection(("127.0.0.1", client.port), 120) as said:
        said.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n400000\r\n".encode() + b" " * (1 << 22))
        said.sendall(b"\r\n1\r\n \r\n")
        assert said.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_full_queue_says_come_again(client, device):
    device.gate.clear()
    try:
        found = []
        asking = [
            threading.Thread(target=lambda n=n: found.append(client.complete([n, n], max_tokens=5)))
            for n in range(1, 12)
        ]
        for thread in asking:
            thread.start()
        wait_for(lambda: sum(client.desk._under_way) == 11)
        status, headers, why = client.ask("/v1/completions", {"prompt": [[1], [2]]})
        assert status == 429 and headers["Retry-After"] == "1"
        assert why["error"]["type"] == "rate_limit_error" and "All 12 places" in why["error"]["message"]
        last = threading.Thread(target=lambda: found.append(client.complete([99], max_tokens=5)))
        last.start()
        wait_for(lambda: sum(client.desk._under_way) == 12)
        assert client.ask("/v1/completions", P)[0] == 429
    finally:
        device.gate.set()
    for thread in (*asking, last):
        thread.join(120)
    assert len(found) == 12
    client.wait_until_idle()


def test_clients_that_go_away_free_their_places(client, device):
    """Some before anything is sent, some in the middle of a stream, some of those that wait."""
    device.gate.clear()
    try:
        plain = [socket.create_connection(("127.0.0.1", client.port), 120) for _ in range(9)]
        for number, connection in enumerate(plain):
            body = json.dumps(
                {"prompt": [number + 1], "max_tokens": 60, "stream": number % 2 == 0, "ignore_eos": True}
            )
            head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        wait_for(lambda: sum(client.desk._under_way) == 9)
        for connection in plain:
            connection.close()
        wait_for(lambda: not any(client.desk._under_way))
    finally:
        device.gate.set()
    client.wait_until_idle()
    assert client.complete([5], max_tokens=5)["choices"][0]["text"] == told(device, [5], 5)[0]


def test_requests_that_take_too_long_are_given_up():
    device = Gated(SIZES, end_share=0.0)
    with served(device, timeout_s=0.5) as client:
        device.gate.clear()
        try:
            # The first token comes of the prompt: without a stream nothing was sent, and a stream has begun.
            status, _, why = client.ask("/v1/completions", P)
            assert status == 504 and why["error"]["type"] == "server_error"
            status, _, found = client.ask("/v1/completions", P | {"stream": True})
            # Fetched a step late: whether it has come is not said here.
            assert status == 504 or "not complete in time" in found[-1]["error"]["message"]
            wait_for(lambda: not any(client.desk._under_way))
            with socket.create_connection(("127.0.0.1", client.port), 120) as slow:
                head = (
                    "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                )
                slow.sendall(f"{head}Content-Length: 10\r\n\r\n".encode())
                assert slow.recv(1000).startswith(b"HTTP/1.1 408 ")
        finally:
            device.gate.set()
        client.wait_until_idle()


def test_a_reader_that_does_not_read_is_given_up_and_holds_nobody_up():
    long = Sizes(slots=4, pages=4001, page=16, length=16_000, chunks=(16,))
    device = Simulated(long, end_share=0.0)
    with served(device, vocabulary=Letters([b"x" * 9000] * 1000)) as client:
        lazy = socket.socket()
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with lazy:
            lazy.connect(("127.0.0.1", client.port))
            body = json.dumps({"prompt": [1], "max_tokens": 15_000, "stream": True})
            head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            lazy.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            wait_for(lambda: any(client.desk._under_way))
            assert client.complete([2], max_tokens=3)["usage"]["completion_tokens"] == 3
            client.wait_until_idle()
            assert device.at_work == {}


def test_an_engine_that_is_faster_than_the_server_is_told_whole():
    """Far more tokens come at once than a client may leave lying."""
    long = Sizes(slots=4, pages=4001, page=16, length=16_000, chunks=(16,))
    with served(Simulated(long, end_share=0.0)) as client:
        found = client.complete([1], max_tokens=9000, stream=True, **USAGE)
        assert len(text_of(found).split()) == 9000 == found[-2]["usage"]["completion_tokens"]
        assert len(client.complete([1], max_tokens=9000)["choices"][0]["text"].split()) == 9000


def test_a_broken_engine_tells_all():
    device = Gated(SIZES)
    with served(device) as client:
        device.step = lambda slots: 1 / 0
        status, _, why = client.ask("/v1/completions", P | {"max_tokens": 9, "ignore_eos": True})
        assert status == 503 and "division by zero" in why["error"]["message"]
        status, _, why = client.ask("/v1/completions", P)
        assert status == 503 and why["error"]["type"] == "server_error"
        assert client.ask("/health")[0] == 503


def test_a_text_without_numbers_fails_alone(device):
    class Spoiled(Simulated):
        def told(self, request):
            return [-1] if request.prompt[0] == 13 else super().told(request)

    with served(Spoiled(SIZES)) as client:
        status, _, why = client.ask("/v1/completions", {"prompt": [13]})
        assert status == 500 and "no numbers" in why["error"]["message"]
        assert client.complete([14])["choices"]
        client.wait_until_idle()


def test_who_has_no_key_and_who_asks_for_another_host_is_refused():
    with served(Gated(SIZES), api_key="secret", hosts=("127.0.0.1", "localhost")) as client:
        for key in (None, "Bearer", "Bearer secre", "Bearer secret2", "secret", "Bearer sécret"):
            headers = {} if key is None else {"Authorization": key.encode("latin-1")}
            status, answer, why = client.ask("/v1/models", headers=headers)
            assert status == 401 and answer["WWW-Authenticate"] == "Bearer", key
            assert why["error"]["code"] == "invalid_api_key"
        key = {"Authorization": "Bearer secret"}
        assert client.ask("/v1/models", headers=key)[0] == 200
        assert client.ask("/health")[0] == 200
        assert client.ask("/health", headers={"Host": "localhost:80"})[0] == 200
        assert client.ask("/health", headers=key | {"Host": "evil.example"})[0] == 403


def test_replicas_share_the_requests():
    devices = [Gated(SIZES) for _ in range(2)]
    with served(*devices) as client:
        for device in devices:
            device.gate.clear()
        found = []
        asking = [
            threading.Thread(target=lambda n=n: found.append(client.complete([n, n], max_tokens=5)))
            for n in range(1, 7)
        ]
        for thread in asking:
            thread.start()
        wait_for(lambda: client.desk._under_way == [3, 3])
        for device in devices:
            device.gate.set()
        for thread in asking:
            thread.join(120)
        client.wait_until_idle()
    assert len(found) == 6


def test_shutting_down_ends_streams_in_time(monkeypatch):
    """Who is nearly done is answered whole; who is not is told so."""
    monkeypatch.setattr(server, "GRACE_SECONDS", 0.5)
    device = Gated(SIZES, end_share=0.0)
    step = device.step

    def pausing(slots):
        time.sleep(0.05)
        return step(slots)

    device.step = pausing
    with served(device) as client, client.streaming(prompt=[1], max_tokens=40) as connection:
        answer = connection.getresponse()
        assert answer.read(6) == b"data: "
        began = time.monotonic()
        client.running.should_exit = True
        wait_for(lambda: client.desk.broken)
        rest = events(b"data: " + answer.read())
        assert "shut down before" in rest[-1]["error"]["message"] and "[DONE]" not in rest
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            client.ask("/health")
        assert time.monotonic() - began < 20
