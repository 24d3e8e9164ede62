"""Runtime adapter for the WASI testsuite (https://github.com/WebAssembly/wasi-testsuite, doc/adapters.md there):

    ./run-tests --runtime-adapter .../tests/conformance/polyinit.py --expectations .../tests/conformance/expectations.toml

`POLYINIT` names the binary in place of the one of PATH. A command is given a message by `polyinit invoke`, which has what it
writes to standard output as its answer; a service is served by `polyinit serve`.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading

POLYINIT = os.environ.get("POLYINIT", "polyinit")
PR_SET_PDEATHSIG = 1  # prctl(2)
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
    # The runner kills this where a test fails, and the server is to end with it.
    serve = subprocess.Popen([POLYINIT, "serve", *words, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, preexec_fn=end_with_parent)
    signal.signal(signal.SIGINT, lambda *_: serve.send_signal(signal.SIGINT))
    begun = threading.Event()
    threading.Thread(target=pass_on, args=(serve.stderr, begun)).start()
    for line in serve.stdout:
        if "serving on http://" in line:
            print(line.strip(), file=sys.stderr, flush=True)
            begun.set()
    begun.set()
    return serve.wait()


def pass_on(lines, begun):
    """What the server says of its start, of a long compilation for one, comes after where it serves."""
    begun.wait()
    for line in lines:
        sys.stderr.write(line)


def end_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__" and sys.argv[1:2] in (["--command"], ["--service"]):
    sys.exit({"--command": command, "--service": service}[sys.argv[1]](sys.argv[2:]))
