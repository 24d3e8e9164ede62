"""Failures in the program's own terms: a sentence, and a traceback without our frames in it."""

import json
import os
import traceback

# The end of a traceback says most; this many characters of it are kept.
TRACEBACK_LIMIT = 100_000


class Refused(Exception):
    """The program can't be run; the message says why, in the user's terms."""


def own_traceback(error):
    """The traceback in the program's own terms: without the frames of the worker and of the import system."""
    frames = error.__traceback__
    while frames is not None and hidden(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    report = traceback.TracebackException(type(error), error, frames)
    seen = set()
    stack = [report]
    while stack:
        part = stack.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        part.stack[:] = [frame for frame in part.stack if not hidden(frame.filename)]
        stack += [part.__cause__, part.__context__]
    text = "".join(report.format())
    return text[-TRACEBACK_LIMIT:]


def hidden(filename):
    # "<polyinit" is how the bootstrap in mod.rs names the worker's own code.
    return filename.startswith(("<polyinit", "<frozen importlib")) or filename.endswith("/importlib/__init__.py")


def tells_of_departure(error):
    """Whether it says that the client is gone, as frameworks do: Starlette's WebSocketDisconnect, and others of such names."""
    group = getattr(error, "exceptions", None)
    if isinstance(group, tuple) and group:
        return all(map(tells_of_departure, group))
    return "Disconnect" in type(error).__name__


def last_line(error):
    if isinstance(error, SystemExit):
        return f"the program called sys.exit({error.code!r})"
    lines = traceback.format_exception_only(type(error), error)
    return lines[-1].strip()[:2000]


def advice(error, root):
    """What to do about an import that failed in a program in `root`, to go on the message with; or nothing."""
    if isinstance(error, ImportError) and "with no known parent package" in str(error):
        above, package = os.path.split(root.rstrip("/"))
        if not package.isidentifier():
            return ""
        return f". Its folder is a package, which is found from the folder above it: `polyinit serve {above} " \
               f"--entrypoint {package}.MODULE:NAME`"
    name = isinstance(error, ModuleNotFoundError) and error.name
    package = name and name.partition(".")[0]
    if not package or any(os.path.exists(os.path.join(root, own)) for own in (package, package + ".py")):
        return ""
    installed = [folder for folder in (".venv", "venv") if os.path.isdir(os.path.join(root, folder))]
    make, folder = ("", installed[0]) if installed else ("python3 -m venv .venv && ", ".venv")
    listed = os.path.exists(os.path.join(root, "requirements.txt"))
    return f". In the program's folder, `{make}{folder}/bin/pip install {'-r requirements.txt' if listed else package}` " \
           "installs it beside the program"


def fault(message, text):
    # Of a file's name that is not UTF-8, Python makes what is not to be had in JSON (PEP 383).
    return json.dumps({"message": message, "traceback": text}, ensure_ascii=False).encode(errors="replace")
