"""Processes find each other before JAX's runtime starts, which ends them if one is missing.

Process 0 listens at the coordinator's port until every other process has said its number.
"""

import contextlib
import os
import socket
import time

from jaxcls.errors import InputError

_HELLO, _GO = "jaxcls", "go"
# Bytes of a line, and seconds in which a process that has connected must say it.
_LINE, _PROMPT = 200, 5.0
# Bytes of the word of process 0, which may list many processes.
_WORD = 1 << 16


def gather(host: str, port: int, count: int, number: int, seconds: float) -> None:
    """Returns once all `count` processes have called it; this is the one of a number.

    host, port: where process 0 listens.

    Raises `InputError` in each process if one of them is missing after so many seconds, if
    two have one number, or if their counts differ.
    """
    if count == 1:
        return
    where = f"--coordinator={host}:{port}"
    if number:
        _join(host, port, count, number, seconds, where)
        return
    try:
        server = _listening(port)
    except OSError as error:
        raise InputError(
            f"{where}: process 0 cannot listen there ({_reason(error)}); give a free port"
            " of its machine"
        ) from None
    with server, contextlib.ExitStack() as stack:
        peers: dict[int, socket.socket] = {}
        wrong = _collect(server, peers, count, time.monotonic() + seconds, stack)
        for peer in peers.values():
            with contextlib.suppress(OSError):  # It may have given up.
                peer.sendall(f"{wrong or _GO}\n".encode())
    if wrong:
        raise InputError(f"{where}: {wrong}")


def _listening(port: int) -> socket.socket:
    """Returns a socket that listens at a port of every interface."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _collect(
    server: socket.socket,
    peers: dict[int, socket.socket],
    count: int,
    deadline: float,
    stack: contextlib.ExitStack,
) -> str:
    """Fills `peers` by number; returns what is wrong, or "" once all are there."""
    began = time.monotonic()
    while True:
        for number in [number for number, peer in peers.items() if _has_ended(peer)]:
            del peers[number]  # It gave up, or was started again.
        if len(peers) == count - 1:
            return ""
        server.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            peer = stack.enter_context(server.accept()[0])
            said = _line(peer, _PROMPT).split()
        except TimeoutError:
            if time.monotonic() < deadline:
                continue  # Something else connected, and said nothing.
            missing = [str(i) for i in range(1, count) if i not in peers]
            return (
                f"{', '.join(missing)} of processes 0 to {count - 1} did not join within"
                f" {deadline - began:.0f} s; start them too, or give a longer"
                " --join_timeout"
            )
        except OSError:
            continue
        if len(said) != 3 or said[0] != _HELLO or not (said[1] + said[2]).isdecimal():
            continue
        theirs, number = int(said[1]), int(said[2])
        if number in peers and _has_ended(peers[number]):
            del peers[number]
        if theirs != count:
            wrong = f"one process has --processes={theirs}, and process 0 has {count}"
        elif number in peers or not 0 < number < count:
            wrong = f"two processes have --process={number}; give each its own"
        else:
            peers[number] = peer
            continue
        with contextlib.suppress(OSError):
            peer.sendall(f"{wrong}\n".encode())
        return wrong


def _has_ended(peer: socket.socket) -> bool:
    """Returns whether the other side has closed a connection on which it says nothing."""
    peer.setblocking(False)
    try:
        return not peer.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        peer.settimeout(_PROMPT)


def _join(
    host: str, port: int, count: int, number: int, seconds: float, where: str
) -> None:
    """Says this process's number to process 0, and waits for its word."""
    deadline, last = time.monotonic() + seconds, "nobody listens"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as link:
                link.sendall(f"{_HELLO} {count} {number}\n".encode())
                # Process 0 may have begun later, and knows who is missing.
                word = _line(link, seconds + _PROMPT, _WORD)
        except OSError as error:  # Process 0 may start later, and its name be known later.
            last = _reason(error)
            time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))
            continue
        if word == _GO:
            return
        if word:
            raise InputError(f"{where}: {word}")
        last = "process 0 ended"
        time.sleep(0.2)
    raise InputError(
        f"{where}: process {number} of {count} did not reach process 0 there within"
        f" {seconds:.0f} s ({last}); start process 0 at that address, or give a"
        " longer --join_timeout"
    )


def _reason(error: OSError) -> str:
    """Returns why in words, without the address that Python adds to some."""
    known = error.errno is not None and error.errno > 0
    return os.strerror(error.errno) if known and error.errno else str(error)


def _line(link: socket.socket, seconds: float, most: int = _LINE) -> str:
    """Returns the line that the other side sends; "" if it ends without one.

    most: the bytes of it that are read. Raises TimeoutError if none comes in time.
    """
    link.settimeout(seconds)
    said = b""
    while not said.endswith(b"\n") and len(said) < most:
        part = link.recv(_LINE)
        if not part:
            return ""
        said += part
    return said.decode("ascii", "replace").strip()
