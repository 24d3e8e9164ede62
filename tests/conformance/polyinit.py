"""Runtime adapter for the WASI testsuite (https://github.com/WebAssembly/wasi-testsuite, doc/adapters.md there):

    ./run-tests --runtime-adapter .../tests/conformance/polyinit.py --expectations .../tests/conformance/expectations.toml

`POLYINIT` names the binary in place of the one of PATH. A command is given a message by `polyinit invoke`, which has what it
writes to standard output as its answer; a service is served by `polyinit serve`.
"""

import os
import re
import signal
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
    kind = "--service" if wasi_world == "wasi:http/service" else "--command"
    argv = [sys.executable, os.path.abspath(__file__), kind, test_path]
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
    """Runs a command once; its exit status."""
    invoke = [POLYINIT, "invoke", *words, "--message", os.devnull]
    done = subprocess.run(invoke, capture_output=True, check=False)
    sys.stdout.buffer.write(done.stdout.removesuffix(b"\n"))  # which is not the guest's
    sys.stderr.buffer.write(done.stderr)
    exited = re.search(rb"the guest exited with status (\d+)", done.stderr)
    if exited:
        return int(exited[1])
    return TRAPPED if done.returncode else 0


def service(words):
    """Serves until it is interrupted, and says where as the runner expects it: in the first line of standard error."""
    serve = subprocess.Popen([POLYINIT, "serve", *words, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, lambda *_: serve.send_signal(signal.SIGINT))
    for line in serve.stdout:
        if "serving on http://" in line:
            print(line.strip(), file=sys.stderr, flush=True)
    return serve.wait()


if __name__ == "__main__" and sys.argv[1:2] in (["--command"], ["--service"]):
    sys.exit({"--command": command, "--service": service}[sys.argv[1]](sys.argv[2:]))
