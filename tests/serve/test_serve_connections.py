"""Connections: the time for a request head, idle connections, and more connections than the server keeps."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from helpers.mock_models import CARDS_IN_THREES, mock
from helpers.running_server import Running, Switch, serving, until

pytestmark = pytest.mark.filterwarnings("ignore::cards.errors.UnreachableTargetWarning")
HALF = b"GET /health HTTP/1.1\r\nX-A: b\r\n"
WHOLE = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@contextmanager
def opened(running: Running, data: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as connection:
        connection.sendall(data)
        yield connection


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed the connection; received data is dropped."""
    connection.setblocking(False)
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@pytest.mark.parametrize("data", [b"", b"GET", HALF])
def test_a_connection_without_a_complete_head_is_closed(data: bytes) -> None:
    with serving(mock(), Switch(), CARDS_IN_THREES, header_timeout=0.2) as running, opened(running, data) as connection:
        assert connection.recv(4096) == b""


def test_the_head_of_a_later_request_has_the_same_time() -> None:
    with serving(mock(), Switch(), CARDS_IN_THREES, header_timeout=0.2) as running, opened(running, WHOLE) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        time.sleep(0.3)  # idle for longer than a head may take
        connection.sendall(HALF)
        until(lambda: is_closed(connection))


def test_a_running_request_may_take_longer_than_its_head() -> None:
    reward = Switch()
    reward.held = True
    with serving(mock(), reward, CARDS_IN_THREES, header_timeout=0.1) as running, ExitStack() as stack:
        connection = stack.enter_context(running.send({"prompt": "abc", "max_tokens": 3}))
        until(lambda: reward.asked)
        time.sleep(0.3)
        reward.held = False
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")


def test_idle_connections_are_kept_as_long_as_the_option_says() -> None:
    with serving(mock(), Switch(), CARDS_IN_THREES) as running:
        assert running.server.config.timeout_keep_alive == 75
    with serving(mock(), Switch(), CARDS_IN_THREES, keep_alive=1) as running, opened(running, WHOLE) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        assert connection.recv(4096) == b""


def test_at_the_limit_the_connection_that_has_waited_longest_is_closed() -> None:
    reward = Switch()
    reward.held = True
    with serving(mock(), reward, CARDS_IN_THREES, limit_connections=3) as running, ExitStack() as stack:
        busy = stack.enter_context(running.send({"prompt": "abc", "max_tokens": 3}))
        until(lambda: reward.asked)
        first, second, third = (stack.enter_context(opened(running, HALF)) for _ in range(3))
        until(lambda: is_closed(first))
        assert running.get("/health").status_code == 200
        until(lambda: is_closed(second))
        assert not is_closed(third)
        reward.held = False
        assert busy.recv(4096).startswith(b"HTTP/1.1 200")


def test_connections_with_requests_are_not_closed_for_others() -> None:
    reward = Switch()
    reward.held = True
    with serving(mock(), reward, CARDS_IN_THREES, limit_connections=1) as running, ExitStack() as stack:
        busy = stack.enter_context(running.send({"prompt": "abc", "max_tokens": 3}))
        until(lambda: reward.asked)
        other = stack.enter_context(opened(running, WHOLE))
        until(lambda: is_closed(other))
        reward.held = False
        assert busy.recv(4096).startswith(b"HTTP/1.1 200")


@pytest.mark.slow
def test_half_open_connections_beyond_the_files_leave_the_server_usable() -> None:
    """1,100 connections, a process that may open 1,024 files, and another client."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for the clients
    command = [sys.executable, "-m", "cards", "serve", "--port", "0", "--no-playground"]
    limited = ["sh", "-c", 'ulimit -n 1024; exec "$@"', "sh", *command]
    process = subprocess.Popen(limited, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        assert process.stderr is not None
        port = next(line["port"] for line in map(json.loads, process.stderr) if line["message"] == "listening")
        with ExitStack() as stack:
            for _ in range(1100):
                connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
                connection.sendall(HALF)
            with socket.create_connection(("127.0.0.1", port), timeout=60) as other:
                other.sendall(WHOLE)
                assert other.recv(4096).startswith(b"HTTP/1.1 200")
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
        assert len(rest) < 2000
        assert [json.loads(line)["message"] for line in rest.splitlines()][-1] == "stopped"
    finally:
        process.kill()
        process.communicate()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
