"""Runtime adapter for the WASI testsuite (https://github.com/WebAssembly/wasi-testsuite, doc/adapters.md there):

    ./run-tests --runtime-adapter .../tests/conformance/polyinit.py --expectations .../tests/conformance/expectations.toml

`POLYINIT` names the binary in place of the one of PATH. A command is given a message by `polyinit invoke`, which has what it
writes to standard output as its answer; a service is served by `polyinit serve`.
"""

import os
import re
import subprocess
import sys

POLYINIT = os.environ.get("POLYINIT", "polyinit")
# What the runner looks for; anything else is a test that did not pass.
TRAPPED = 134


def get_name():
    return "polyinit"


def get_version():
    printed = subprocess.run([POLYINIT, "--version"], check=True, capture_output=True, text=True).stdout
    return printed.split()[-1]


def get_wasi_versions():
    return ["wasm32-wasip1", "wasm32-wasip3"]


def get_wasi_worlds():
    return ["wasi:cli/command", "wasi:http/service"]


def get_timeout_seconds():
    return 10.0  # compiling what is not cached yet is part of it


def compute_argv(test_path, args_env_root, proposals, wasi_world, _wasi_version):
    args, env, root = args_env_root
    if wasi_world == "wasi:http/service":
        # The runner looks for the address in the first line of standard error.
        serve = ["serve", "--quiet", "--listen", "127.0.0.1:0", test_path]
        argv = ["sh", "-c", 'exec "$0" "$@" >&2', POLYINIT, *serve]
    else:
        argv = [sys.executable, os.path.abspath(__file__), "--command", test_path]
    for name, value in env.items():
        argv += ["--env", f"{name}={value}"]
        if name.startswith("HTTP_SERVER_"):
            argv += ["--allow-host", f"http://{value}"]
    for arg in args:
        argv += ["--arg", arg]
    if root:
        argv += ["--allow-dir", f"{root}::/:rw"]
    if "sockets" in proposals:
        for address in ("127.0.0.1", "[::1]"):
            argv += ["--allow-host", f"tcp://{address}:*", "--allow-host", f"udp://{address}:*"]
    return argv


def command(words):
    """Runs a command once, with this process's own streams; its exit status."""
    invoke = subprocess.run([POLYINIT, "invoke", *words, "--message", "-"], stderr=subprocess.PIPE, text=True, check=False)
    sys.stderr.write(invoke.stderr)
    exited = re.search(r"the guest exited with status (\d+)", invoke.stderr)
    if exited:
        return int(exited[1])
    return TRAPPED if invoke.returncode else 0


if __name__ == "__main__" and sys.argv[1:2] == ["--command"]:
    sys.exit(command(sys.argv[2:]))
