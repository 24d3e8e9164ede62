"""What the measurements over HTTP have in common: servers that take turns on one port, wrk, and a table of Markdown."""

import argparse
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Optional

ROOT = Path(__file__).resolve().parent.parent
CONNECTIONS = (1, 16, 64)


@dataclass
class Row:
    """What is asked for: a path, and what wrk is told beside."""

    path: str
    script: Optional[str] = None


@dataclass
class Server:
    """What answers: a command for a port, where and with which environment it runs."""

    command: Callable[[int], list]
    folder: Path = ROOT
    environment: dict = field(default_factory=dict)


def arguments_of(document, extend=lambda parser: None):
    """The command line that every measurement has, and what `extend` adds to it."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", nargs="?", type=Path, metavar="POLYINIT")
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", metavar="ROW")
    extend(parser)
    arguments = parser.parse_args()
    arguments.binary = arguments.binary or next(ROOT.glob("target/*/dist/polyinit"), None)
    if arguments.binary is None:
        sys.exit(f"{sys.argv[0]}: there is no binary yet: make dist")
    arguments.binary = arguments.binary.resolve()
    return arguments


def need(command, package):
    """Installs the Debian package that a command is in, where it is missing."""
    if not shutil.which(command, path=f"{os.environ['PATH']}:/usr/sbin"):
        root = [] if os.geteuid() == 0 else ["sudo"]
        install = ["apt-get", "install", "--yes", "--quiet=2", "--no-install-recommends", package]
        subprocess.run([*root, *install], check=True)


def compare(rows, servers, arguments):
    """Measures each row with each of its servers, `servers(row)` by name, and prints the medians of the rounds."""
    need("wrk", "wrk")
    measured = {}
    for number in range(arguments.rounds):
        for row, asked in rows.items():
            if arguments.only not in (None, row):
                continue
            for name, server in servers(row).items():
                print(f"round {number + 1}: {row}: {name}", file=sys.stderr)
                measured.setdefault((row, name), []).append(measure(server, asked, arguments.seconds))
    at = " / ".join(map(str, CONNECTIONS))
    print(f"| program | server | per second at {at} connections | p99 at {at}, ms |\n|---|---|--:|--:|")
    for (row, name), rounds in measured.items():
        rates = [f"{statistics.median(one[i][0] for one in rounds):,.0f}" for i in range(len(CONNECTIONS))]
        slowest = [f"{statistics.median(one[i][1] for one in rounds):.2f}" for i in range(len(CONNECTIONS))]
        print(f"| {row} | {name} | {' / '.join(rates)} | {' / '.join(slowest)} |")


def measure(server, row, seconds):
    """Requests per second, and their 99th percentile in milliseconds, at each number of connections."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(word) for word in server.command(port)]
    environment = {**os.environ, **server.environment, "PORT": str(port)}
    process = subprocess.Popen(command, cwd=server.folder, env=environment, start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(process, port, command)
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as lua:
            lua.write(row.script or "")
            lua.flush()
            with_script = ["-s", lua.name] if row.script else []
            ask(port, row.path, CONNECTIONS[-1], 1, with_script)
            return [ask(port, row.path, connections, seconds, with_script) for connections in CONNECTIONS]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(process, port, command):
    deadline = time.monotonic() + 30
    while True:
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"{sys.argv[0]}: this did not begin to serve: {' '.join(command)}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.01)


def ask(port, path, connections, seconds, script):
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", *script, f"http://127.0.0.1:{port}{path}"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if wrong := re.search(r"Non-2xx or 3xx responses: \d+|Socket errors: .*", said):
        sys.exit(f"{sys.argv[0]}: {' '.join(command)}: {wrong[0]}")
    rate = float(re.search(r"Requests/sec: +([\d.]+)", said)[1])
    value, unit = re.search(r"99% +([\d.]+)(us|ms|s)", said).groups()
    return rate, float(value) * {"us": 0.001, "ms": 1, "s": 1000}[unit]
