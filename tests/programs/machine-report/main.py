"""Tells what kind of machine it runs in, as a program sees it."""

import importlib
import json
import os
import socket
import time
from urllib.parse import parse_qs


LIMITED = {"cpu", "io", "memory", "pids"}


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    query = parse_qs(scope["query_string"].decode())
    try:
        value = ROUTES[scope["path"]](query)
    except OSError as error:
        value = {"error": str(error)}
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(value).encode()})


def report(query):
    with open("/proc/1/cmdline", "rb") as file:
        init = file.read().split(b"\0")[0].decode()
    return {
        "init": init,
        "host_name": socket.gethostname(),
        "mounts": mounts(),
        "resolv_conf": read("/etc/resolv.conf"),
        "hosts": read("/etc/hosts"),
        "links": {name: read(f"/sys/class/net/{name}/operstate").strip() for name in os.listdir("/sys/class/net")},
        "routes": [line.split()[:3] for line in read("/proc/net/route").splitlines()[1:]],
        "environment": dict(os.environ),
        "uid": os.getuid(),
        "device_links": {link: os.readlink(link) for link in ("/dev/fd", "/dev/stdin", "/dev/stdout", "/dev/stderr")},
        "cgroup": read("/proc/self/cgroup").strip(),
        "oom_score_adj": read("/proc/self/oom_score_adj").strip(),
        "controllers": " ".join(sorted(set(read("/sys/fs/cgroup/programs/cgroup.controllers").split()) & LIMITED)),
        "api_socket": os.path.exists("/run/polyinit/api.sock") and os.path.exists("/tmp/socat-socket"),
    }


def write(query):
    """Writes to a path and reads it back."""
    path = query["path"][0]
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write("written in the machine\n")
    return read(path)


def show(query):
    return read(query["path"][0])


def mode(query):
    found = os.stat(query["path"][0])
    return f"{found.st_mode:o} {found.st_uid}:{found.st_gid}"


def loopback(query):
    """A server and a client on 127.0.0.1 and ::1."""
    said = []
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.create_server((address, 0), family=family) as server:
            with socket.create_connection(server.getsockname()[:2]) as client:
                client.sendall(address.encode())
                connection, _ = server.accept()
                with connection:
                    said.append(connection.recv(100).decode())
    return said


def orphans(query):
    """Leaves processes behind whose parents have ended, and which have ended themselves."""
    count, batch = int(query["count"][0]), 100
    before, began = init_time(query), time.monotonic()
    for _ in range(count // batch):
        parent = os.fork()
        if parent == 0:
            for _ in range(batch):
                if os.fork() == 0:
                    os._exit(0)
            os._exit(0)
        os.waitpid(parent, 0)
    return {"init_time": before, "seconds": time.monotonic() - began}


def init_time(query):
    """Processor time that init's threads have used, in seconds: to the nanosecond, where /proc/PID/stat counts ticks."""
    return sum(int(read(f"/proc/1/task/{task}/schedstat").split()[0]) for task in os.listdir("/proc/1/task")) / 1e9


def eat(query):
    """Takes memory until somebody does something about it."""
    eaten = []
    while True:
        eaten.append(os.urandom(1 << 20))


def on_terminals(query):
    """Processes by their terminals: `ttyS0` is device 4, 64."""
    found = {}
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            name, fields = read(f"/proc/{process}/stat").split(" (", 1)[1].rsplit(") ", 1)
        except (OSError, IndexError):
            continue
        terminal = int(fields.split()[4])
        if terminal:
            found[name] = [os.major(terminal), os.minor(terminal)]
    return found


def imported(query):
    """Where a module is found."""
    return importlib.import_module(query["module"][0]).__file__


def zombies(query):
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = read(f"/proc/{process}/stat").rsplit(") ", 1)[1].split()
        except (OSError, IndexError):
            continue
        if fields[0] == "Z":
            found.append(int(process))
    return found


def mounts():
    return {line.split()[1]: line.split()[2:4] for line in read("/proc/mounts").splitlines()}


def read(path):
    with open(path) as file:
        return file.read()


ROUTES = {
    "/report": report,
    "/write": write,
    "/show": show,
    "/loopback": loopback,
    "/orphans": orphans,
    "/init-time": init_time,
    "/eat": eat,
    "/mode": mode,
    "/on-terminals": on_terminals,
    "/import": imported,
    "/zombies": zombies,
}
