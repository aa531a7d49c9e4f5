# SPDX-License-Identifier: Apache-2.0
"""The control socket's file: stale ones, living ones, modes, and paths of any length."""

from __future__ import annotations

import grp
import os
import socket
import stat
from pathlib import Path

import pytest

from ingestd.control.messages import socket_address
from ingestd.daemon.control.socket_file import SocketFile
from ingestd.errors import ConfigError, ListenError


def test_its_mode_and_its_end(tmp_path: Path) -> None:
    path = tmp_path / "control"
    file = SocketFile(str(path), None)
    with pytest.raises(ConnectionRefusedError), socket.socket(socket.AF_UNIX) as early:
        early.connect(str(path))
    found = path.stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o660
    file.listen()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    file.close()
    assert not path.exists()


def test_a_stale_one_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    file = SocketFile(str(path), None)
    file.listen()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    file.close()


def test_a_living_one_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "control"
    living = SocketFile(str(path), None)
    living.listen()
    with pytest.raises(ListenError, match=rf"process {os.getpid()} listens on {path}"):
        SocketFile(str(path), None)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))  # it is as it was
    living.close()


def test_one_whose_backlog_is_full_lives_too(tmp_path: Path) -> None:
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
        busy.bind(str(path))
        busy.listen(0)
        client.connect(str(path))
        with pytest.raises(ListenError, match="does not accept"):
            SocketFile(str(path), None)
    assert path.exists()


def test_what_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "control"
    path.write_text("precious")
    with pytest.raises(ListenError, match="no socket"):
        SocketFile(str(path), None)
    assert path.read_text() == "precious"


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match="cannot be made"):
        SocketFile(str(tmp_path / "none" / "control"), None)


def test_the_socket_of_a_successor_stays(tmp_path: Path) -> None:
    path = tmp_path / "control"
    first = SocketFile(str(path), None)
    path.unlink()
    second = SocketFile(str(path), None)
    first.close()
    assert path.exists()
    second.close()


def test_a_group(tmp_path: Path) -> None:
    path = tmp_path / "control"
    own = grp.getgrgid(os.getegid()).gr_name
    SocketFile(str(path), own).close()
    with pytest.raises(ConfigError, match="no group 'nobody-knows-it'"):
        SocketFile(str(path), "nobody-knows-it")


def test_a_path_longer_than_an_address(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 120)
    directory.mkdir()
    path = directory / "control"
    file = SocketFile(str(path), None)
    file.listen()
    with socket.socket(socket.AF_UNIX) as client, socket_address(str(path)) as address:
        client.connect(address)
    file.close()
    assert not path.exists()
