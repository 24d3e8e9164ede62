"""Runs today's guest (its `init1.py`, named by path) on this machine: AF_VSOCK becomes a Unix socket that speaks as a VMM.

    today.py INIT1 SOCKET

What it would do to its machine (host name, name servers, mounts, reboot) is left out; unpacking is done, to /opt.
"""

import asyncio
import builtins
import os
import runpy
import socket
import subprocess
import sys

init, path = sys.argv[1:3]
real_socket, real_run, real_asyncio_run, real_open = socket.socket, subprocess.run, asyncio.run, builtins.open


class Vsock(real_socket):
    """A socket that is asked for AF_VSOCK and is a Unix socket."""

    def __init__(self, family=-1, type=-1, proto=-1, fileno=None):
        self.vsock = family == socket.AF_VSOCK
        super().__init__(socket.AF_UNIX if self.vsock else family, type, proto, fileno)

    def bind(self, address):
        super().bind(path if self.vsock else address)

    def connect(self, address):
        super().connect(f"{path}_{address[1]}" if self.vsock else address)

    def accept(self):
        connection, address = super().accept()
        if self.vsock:
            while connection.recv(1) != b"\n":
                pass
            connection.sendall(b"OK 52\n")
        return connection, address


def run(command, **options):
    if command[0] == "unzip":
        return real_run(command, **options)
    return subprocess.CompletedProcess(command, 0)


def open_elsewhere(file, *arguments, **options):
    """This machine keeps its name servers: today's guest would write none over them."""
    return real_open(os.devnull if str(file).startswith("/etc/") else file, *arguments, **options)


def run_and_leave(main):
    real_asyncio_run(main)
    os._exit(0)


for leftover in ("/opt/archive.zip", "/opt/output.zip"):
    if os.path.exists(leftover):
        os.remove(leftover)
os.makedirs("/opt/code", exist_ok=True)
socket.socket, subprocess.run, asyncio.run, builtins.open = Vsock, run, run_and_leave, open_elsewhere
runpy.run_path(init, run_name="__main__")
