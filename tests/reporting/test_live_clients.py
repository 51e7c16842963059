"""The live page and clients that reset, say nothing, or say nonsense."""

import socket
import struct
import threading
import time
import urllib.request

import pytest

from mlperf_jax.reporting import live
from mlperf_jax.reporting.tables import References


@pytest.fixture
def address(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "_PATIENCE_SECONDS", 0.3)
    with live.make_server(live.Source([tmp_path], References(), "minutes"), 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address
        server.shutdown()
        thread.join()


def serves(address):
    with urllib.request.urlopen(f"http://127.0.0.1:{address[1]}/version", timeout=10) as answer:
        return answer.status == 200


def test_clients_that_reset_are_nobodys_news(address, capsys):
    for sent in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"):
        for _ in range(5):
            client = socket.create_connection(address)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(sent)
            client.close()  # with a reset
    assert serves(address)
    time.sleep(0.2)
    assert capsys.readouterr() == ("", "")


def test_a_client_that_never_speaks_is_let_go(address, capsys):
    silent = [socket.create_connection(address) for _ in range(5)]
    slow = socket.create_connection(address)
    slow.sendall(b"GET / HTTP/1.1\r\n")
    assert serves(address)
    for client in (*silent, slow):
        client.settimeout(10)
        assert client.recv(100) == b""
        client.close()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00" * 20, b"\0" * 70_000 + b"\r\n\r\n", b"GET\r\n\r\n"])
def test_nonsense_is_answered_and_nothing_is_printed(sent, address, capsys):
    with socket.create_connection(address) as client:
        client.sendall(sent)
    assert serves(address)
    assert capsys.readouterr() == ("", "")


def test_folders_that_cannot_be_shown_any_more_are_a_word(address, capsys, monkeypatch):
    def fails(self):
        raise RuntimeError("it is gone")

    monkeypatch.setattr(live.Source, "html", fails)
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{address[1]}/", timeout=10)
    assert capsys.readouterr().err == "mlperf_jax: a page could not be shown (it is gone).\n"
