"""Processes that join, on threads: who is missing or there twice is said to all."""

import socket
import threading
import time

import pytest

from jaxcls.devices import joining
from jaxcls.errors import InputError


@pytest.fixture
def port():
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def joined(port, calls):
    """What each of the calls (count, number, seconds, delay) raised, or ""."""
    said = [None] * len(calls)

    def call(i, count, number, seconds, delay):
        time.sleep(delay)
        try:
            joining.gather("localhost", port, count, number, seconds)
            said[i] = ""
        except InputError as error:
            said[i] = str(error)

    threads = [
        threading.Thread(target=call, args=(i, *each)) for i, each in enumerate(calls)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


@pytest.mark.parametrize("delays", [(0, 0, 0), (0.4, 0, 0), (0, 0.4, 0.2)])
def test_all_join_in_any_order(port, delays):
    calls = [(3, number, 20, delay) for number, delay in enumerate(delays)]
    assert joined(port, calls) == ["", "", ""]


def test_one_process_needs_no_port():
    joining.gather("nowhere.invalid", 1, 1, 0, 0.1)


def test_those_that_are_missing_are_named_to_all(port):
    first, other = joined(port, [(4, 0, 1, 0), (4, 2, 5, 0)])
    expected = "1, 3 of processes 0 to 3 did not join within 1 s; start them too, or give"
    assert f"--coordinator=localhost:{port}: {expected}" in first
    assert expected in other


def test_a_process_that_gave_up_is_missing_for_all(port):
    # It says its number and ends, as if it was killed.
    done = []

    def first_of_two():
        for _ in range(2):
            with socket.create_connection(("localhost", port)) as link:
                link.sendall(b"jaxcls 3 1\n")
                time.sleep(0.2)

    def knock():
        time.sleep(0.5)
        first_of_two()
        done.append(True)

    thread = threading.Thread(target=knock)
    thread.start()
    said = joined(port, [(3, 0, 3, 0), (3, 2, 5, 1.5)])
    thread.join()
    assert done
    assert all("1 of processes 0 to 2 did not join within 3 s" in x for x in said)


def test_a_process_may_be_started_again_while_others_are_awaited(port):
    def killed():
        time.sleep(0.3)
        with socket.create_connection(("localhost", port)) as link:
            link.sendall(b"jaxcls 3 1\n")
            time.sleep(0.2)

    thread = threading.Thread(target=killed)
    thread.start()
    assert joined(port, [(3, 0, 20, 0), (3, 1, 20, 0.8), (3, 2, 20, 1.2)]) == [""] * 3
    thread.join()


def test_who_is_missing_is_known_to_one_that_waited_longer_than_it_should(port):
    first, other = joined(port, [(3, 0, 2, 0.8), (3, 2, 2, 0)])
    assert "1 of processes 0 to 2 did not join within 2 s" in first
    assert "1 of processes 0 to 2 did not join within 2 s" in other


def test_many_that_are_missing_are_all_named(port):
    first, other = joined(port, [(99, 0, 1, 0), (99, 98, 3, 0)])
    assert "96, 97 of processes 0 to 98 did not join within 1 s; start them too" in first
    assert first == other


def test_a_number_given_twice_is_said_to_all(port):
    said = joined(port, [(3, 0, 20, 0), (3, 1, 20, 0.2), (3, 1, 20, 0.4)])
    assert all("two processes have --process=1; give each its own" in x for x in said)


def test_other_counts_are_said_to_all(port):
    said = joined(port, [(3, 0, 20, 0), (2, 1, 20, 0.1)])
    assert all("one process has --processes=2, and process 0 has 3" in x for x in said)


def test_nobody_at_the_port_is_said_in_time(port):
    began = time.monotonic()
    (said,) = joined(port, [(2, 1, 1, 0)])
    assert "process 1 of 2 did not reach process 0 there within 1 s (Connection" in said
    assert time.monotonic() - began < 5
    with pytest.raises(InputError, match="did not reach process 0 there within 0 s"):
        joining.gather("nowhere.invalid", port, 2, 1, 0.3)


def test_a_port_that_is_taken_is_said(port):
    with socket.create_server(("", port)):
        (said,) = joined(port, [(2, 0, 1, 0)])
    assert "process 0 cannot listen there (Address already in use); give a free" in said


@pytest.mark.parametrize(
    "noise", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 5000, b"x y z\n"]
)
def test_what_is_no_process_is_passed_over(port, noise):
    def knock():
        time.sleep(0.2)
        with socket.create_connection(("localhost", port)) as link:
            link.sendall(noise)

    thread = threading.Thread(target=knock)
    thread.start()
    assert joined(port, [(2, 0, 20, 0), (2, 1, 20, 0.6)]) == ["", ""]
    thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_command_whose_peers_are_missing_ends_with_a_line(command, port, number):
    flags = [f"--coordinator=localhost:{port}", "--processes=2", f"--process={number}"]
    given = ["--config=configs/digits.py", *flags, "--join_timeout=2"]
    done = command("train", *given)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "within 2 s" in line
    assert line.startswith(f"error: --coordinator=localhost:{port}: ")
