"""Processes that find each other, and those that do not; here they are threads."""

import socket
import threading
import time

import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.parallel import partners


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def join(port, *processes, seconds=5.0):
    """What each (num_processes, process_id) gets: Partners, or the sentence."""
    found = [None] * len(processes)

    def one(i, count, index):
        try:
            found[i] = partners.join(f"127.0.0.1:{port}", count, index, seconds)
        except UserError as error:
            found[i] = str(error)

    threads = [threading.Thread(target=one, args=(i, *process)) for i, process in enumerate(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


@pytest.mark.parametrize(
    "address",
    [
        "foo:bar",
        "foo",
        ":12",
        "foo:",
        "foo:-1",
        "::1",
        "fe80::1:2",
        "foo bar:1",
        "foo:1:2",
        "f/o:1",
        "foo:1e3",
        "",
    ],
)
def test_an_address_is_host_and_port(address):
    with pytest.raises(UserError, match="is not of the form host:port"):
        partners.parse_address(address)


def test_addresses():
    assert partners.parse_address("host-0.a.b:1234") == ("host-0.a.b", 1234)
    assert partners.parse_address("[fe80::1]:80") == ("fe80::1", 80)
    for port in ("0", "65536", "99999"):
        with pytest.raises(UserError, match="ports go from 1 to 65535"):
            partners.parse_address(f"host:{port}")


def test_all_come_and_the_port_is_free_again():
    port = free_port()
    found = join(port, (3, 2), (3, 0), (3, 1))
    assert all(isinstance(one, partners.Partners) for one in found), found
    socket.create_server(("127.0.0.1", port)).close()  # jax's turn


def test_those_that_did_not_come_are_named():
    first, second = join(free_port(), (4, 0), (4, 2), seconds=1.5)
    assert "Processes 1, 3 did not come to 127.0.0.1:" in first and "within 1.5 s" in first
    assert second == first  # process 0 tells the one that waits
    (alone,) = join(free_port(), (2, 1), seconds=1)
    assert "Process 0 was not to be reached at --coordinator=127.0.0.1:" in alone and "refused" in alone


def test_processes_that_do_not_go_together():
    for first, second, said in [
        ((2, 0), (3, 1), "Process 1 was started with --num_processes=3 and process 0 with 2"),
        ((2, 0), (2, 0), "cannot listen at"),
        ((2, 2), (2, 3), "--process_id=3 of --num_processes=2 cannot be; they count from 0."),
    ]:
        assert any(said in str(one) for one in join(free_port(), first, second, seconds=1))
    found = join(free_port(), (3, 0), (3, 1), (3, 1), seconds=2)
    assert sum("Two processes were started with --process_id=1" in str(one) for one in found) == 3


def test_strangers_do_not_hold_up_the_run():
    port = free_port()
    found = []
    waiting = threading.Thread(target=lambda: found.extend(join(port, (2, 0), seconds=20)))
    waiting.start()
    for said in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 2000, b""):
        while waiting.is_alive():
            try:
                stranger = socket.create_connection(("127.0.0.1", port))
                break
            except OSError:
                time.sleep(0.01)
        stranger.sendall(said)
        stranger.close()
    (second,) = join(port, (2, 1), seconds=20)
    waiting.join(30)
    assert all(isinstance(one, partners.Partners) for one in (*found, second))


def lose(partner: partners.Partners) -> None:
    for connection in partner._connections.values():
        connection.socket.close()  # as the kernel does it for a process that is killed


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_process_that_is_gone_is_known_to_all_others_at_once(gone):
    found = dict(enumerate(join(free_port(), (3, 0), (3, 1), (3, 2))))
    heard = {index: threading.Event() for index in found}
    began = time.monotonic()
    for index, partner in found.items():
        if index != gone:
            partner.watch(heard[index].set)
    lose(found[gone])
    for index, partner in found.items():
        if index != gone:
            assert heard[index].wait(5)
            assert partner.find_lost(1) == f"process {gone} ended or was killed"
    assert time.monotonic() - began < 5


def test_who_says_goodbye_is_not_lost():
    first, second = join(free_port(), (2, 0), (2, 1))
    first.watch(lambda: None)
    second.bye()
    lose(second)
    assert first.find_lost(0.3) == ""
