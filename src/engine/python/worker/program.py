"""The program: makes the process as it expects it, imports it, and tells by looking what it is."""

import asyncio
import importlib
import inspect
import os
import site
import sys
import time
import types

from .report import Refused

# Where a program is looked for that nobody has named.
CANDIDATES = ("app", "application", "asgi", "wsgi", "api", "handler", "handle")
HANDLERS = ("handler", "handle")
# Classes of what is a part of an application, though it is called as one: Starlette's, and those that are made of them.
PARTS = ("Router", "BaseRoute", "StaticFiles")
# Functions that make the program's object, by the names that Flask's own server knows them by.
FACTORIES = ("create_app", "make_app")

ASGI, WSGI, HANDLER = "an ASGI application", "a WSGI application", "a handler"
SHAPES = "an ASGI application (scope, receive, send), a WSGI application (environ, start_response), " \
         "or a handler (event, context)"
OWN_SERVER = "If it serves HTTP itself, it is an executable: begin it with #! and its interpreter, and say " \
             "`engine = \"executable\"` in a polyinit.toml beside it"


def has_uvloop(folder):
    return os.path.isdir(os.path.join(folder, "uvloop"))


# What was there before the program is looked at before anybody waits for it.
SYSTEM = frozenset(sys.path).difference(os.environ.get("PYTHONPATH", "").split(":"))
OF_SYSTEM = any(map(has_uvloop, SYSTEM))


def prepare(load):
    """Makes the process look as the program expects it: environment, working directory, import path."""
    for key, value in load["environment"]:
        os.environ[key] = value
    # The C library has looked at TZ when `time` was first imported.
    time.tzset()
    root = load["root"]
    os.chdir(root)
    sys.argv = [os.path.join(root, load["module"].replace(".", "/") + ".py")]
    paths = [root, *load["packages"]]
    paths += [path for path in os.environ.get("PYTHONPATH", "").split(":") if path]
    sys.path[:] = paths + [path for path in sys.path if path and path not in paths]
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for folder in load["virtual_environments"]:
        libraries = os.path.join(folder, "lib")
        packages = os.path.join(libraries, version, "site-packages")
        if not os.path.isdir(packages):
            versions = os.listdir(libraries) if os.path.isdir(libraries) else []
            others = [other for other in versions if other.startswith("python")
                      and os.path.isdir(os.path.join(libraries, other, "site-packages"))]
            if others:
                sys.stderr.write(f"{folder} is for {others[0]}, and this is Python {sys.version.split()[0]}: what is "
                                 "installed there is left out\n")
        else:
            before = len(sys.path)
            site.addsitedir(packages)
            # What a program brings goes before what the system has.
            added = sys.path[before:]
            del sys.path[before:]
            sys.path[len(paths):len(paths)] = added
    if os.environ.get("PYTHONDONTWRITEBYTECODE"):
        sys.dont_write_bytecode = True


def event_loop_for(plain):
    """uvloop's where the program brings it along, which is looked for where programs bring things: `plain` otherwise."""
    if not OF_SYSTEM and not any(map(has_uvloop, (path for path in sys.path if path not in SYSTEM))):
        return plain
    try:
        import uvloop
    except ImportError:
        return plain
    plain.close()
    return uvloop.new_event_loop()


def find(load):
    """Imports the program; returns the name of its object, the object, and which of the three it is."""
    module_name, attribute = load["module"], load["attribute"]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            there = sorted(name for name in os.listdir(load["root"]) if not name.startswith("."))[:20]
            raise Refused(f"there is no Python module {module_name!r} in {load['root']}, only: "
                          f"{', '.join(there) or 'nothing'}") from None
        raise
    if attribute is not None:
        target = module
        parts = attribute.removesuffix("()").split(".")
        for part in parts:
            if not hasattr(target, part):
                raise Refused(f"the module {module_name!r} has no {attribute!r}; it has: {public(module)}")
            target = getattr(target, part)
        kind, why_not = look_at(parts[-1], target)
        if is_factory(target) and (parts[-1] in FACTORIES or attribute.endswith("()")):
            return made_by(attribute.removesuffix("()"), target)
        if kind is None:
            hint = f" If it makes the program, name it {module_name}:{attribute}()." if is_factory(target) else ""
            raise Refused(f"{attribute!r} {why_not}; what can be run is {SHAPES}. {OWN_SERVER}{hint}")
        return attribute, target, kind
    unfit = []
    for name in CANDIDATES:
        target = getattr(module, name, None)
        if target is None or inspect.ismodule(target):
            continue
        kind, why_not = look_at(name, target)
        if kind is not None:
            return name, target, kind
        unfit.append(f"{name!r} {why_not}; ")
    objects = {id(value): name for name, value in reversed(vars(module).items())
               if is_application(value) and look_at(name, value)[0] is not None}
    if len(objects) == 1:
        name, = objects.values()
        target = getattr(module, name)
        return name, target, look_at(name, target)[0]
    for name in FACTORIES:
        target = getattr(module, name, None)
        if not objects and is_factory(target):
            return made_by(name, target)
    raise Refused(f"the module {module_name!r} has nothing to run under the names {', '.join(CANDIDATES)}: {SHAPES}; "
                  f"{''.join(unfit)}it has: {public(module)}. Name it in the entrypoint: {module_name}:NAME. "
                  f"{OWN_SERVER}")


def is_application(value):
    """Whether it is an object that is called as applications are, by the names of the parameters, and no part of one."""
    # Litestar's application derives from a `Router`, too, but from one that is not called itself.
    if any(base.__name__ in PARTS and "__call__" in vars(base) for base in type(value).__mro__):
        return False
    code = getattr(getattr(type(value), "__call__", None), "__code__", None)
    names = code.co_varnames[1:code.co_argcount] if code is not None else ()
    return names == ("scope", "receive", "send") or len(names) == 2 and names[1] == "start_response"


def is_factory(target):
    if not inspect.isfunction(target) or inspect.iscoroutinefunction(target):
        return False
    return takes(inspect.signature(target), 0)


def made_by(name, factory):
    """What a factory makes, as `find` returns it."""
    target = factory()
    kind, why_not = look_at("", target)
    if kind is None:
        raise Refused(f"what {name}() returns {why_not}; what can be run is {SHAPES}. {OWN_SERVER}")
    return name + "()", target, kind


def public(module):
    names = [name for name, value in vars(module).items()
             if not name.startswith("_") and not inspect.ismodule(value)]
    return ", ".join(names[:20]) or "no public names"


def look_at(name, target):
    """Which of the three `target` is, told from how it can be called; or None, and why not."""
    if is_three_parameter_coroutine(target):
        return ASGI, None
    type_name = f"{type(target).__module__}.{type(target).__qualname__}".removeprefix("builtins.")
    kind = f"is {'an' if type_name[0] in 'aeiou' else 'a'} {type_name}"
    if not callable(target):
        return None, f"{kind}, which can't be called"
    is_async = asyncio.iscoroutinefunction(target) or asyncio.iscoroutinefunction(getattr(target, "__call__", None))
    try:
        signature = inspect.signature(target)
    except ValueError:
        # A callable of C has no signature to look at: let it try.
        return ASGI, None
    one, two, three = (takes(signature, count) for count in (1, 2, 3))
    if three and (is_async or not two):
        return ASGI, None
    if two and is_async:
        return HANDLER, None
    if two:
        words = list(signature.parameters)[:2]
        is_handler = name in HANDLERS or words[0].strip("_") == "event" or words[-1].strip("_") == "context"
        return (HANDLER if is_handler else WSGI), None
    if one and (name in HANDLERS or next(iter(signature.parameters)).strip("_") == "event"):
        return HANDLER, None
    return None, f"{kind} that is called as {name}{signature}"


def is_three_parameter_coroutine(target):
    """Whether it is plainly `async def app(scope, receive, send)`: looking closer at anything takes ten times as long."""
    if not isinstance(target, types.FunctionType) or hasattr(target, "__wrapped__"):
        return False
    code = target.__code__
    flags = code.co_flags & (inspect.CO_COROUTINE | inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
    return flags == inspect.CO_COROUTINE and code.co_argcount == 3 and code.co_kwonlyargcount == 0


def takes(signature, count):
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True
