"""The worker's life: wait for the program, load it, give it its events, let it shut down."""

import asyncio
import atexit
import gc
import json
import logging
import marshal
import os
import signal
import socket
import sys
import threading
import time

from . import asgi, output, program
from .channel import (CANCEL, CONNECT, END, HEADER, LENGTH, LOAD, MESSAGE, PING, PONG, READY, REFUSED, REQUEST, STOP,
                      TAKEN, Channel)
from .report import Refused, advice, fault, last_line, own_traceback

# What cancelled events may take to end before they are not waited for any more, as a share of the time that they had.
LAST_TURNS = 0.15


class Worker:
    """The program, and the events that it has."""

    def __init__(self, channel):
        self.channel = channel
        self.exchanges = {}
        self.loop = None
        self.program = None
        self.stopping = False
        self.given_up = False
        self.idle = None
        self.marks = []
        # What the program itself does at a SIGTERM.
        self.on_term = None

    def on_frame(self, kind, stream, payload):
        if kind == REQUEST:
            self.program.request(stream, payload)
        elif kind == MESSAGE:
            self.program.message(stream, payload)
        elif kind == CONNECT:
            self.program.connect(stream, payload)
        elif kind == PING:
            self.channel.write(PONG, 0)
        elif kind == STOP:
            seconds = LENGTH.unpack(payload)[0] / 1000
            self.loop.call_later(seconds, self.give_up, seconds * LAST_TURNS)
            self.stop()
        else:
            exchange = self.exchanges.get(stream)
            if exchange is None:
                return
            if kind == TAKEN:
                exchange.add_credit(LENGTH.unpack(payload)[0])
            elif kind == END:
                exchange.end_body()
            elif kind == CANCEL:
                exchange.disconnect(None)
            else:
                exchange.take_piece(kind, bytes(payload))

    def begin(self, exchange, coroutine):
        """Has a task of its own see to an event."""
        self.exchanges[exchange.stream] = exchange
        exchange.task = self.begin_task(coroutine)

    def forget(self, exchange):
        """This event is through."""
        self.exchanges.pop(exchange.stream, None)
        output.end_line(exchange.event)
        if self.idle is not None and not self.exchanges:
            asgi.settle(self.idle, None)

    def stop(self):
        if not self.stopping:
            self.stopping = True
            self.ending = self.loop.create_task(self.end())

    def give_up(self, last_turns):
        """Events that are still under way have had their time: what is left is for the program to shut down in."""
        # Cancelled a second time, one would not roll back what it has begun; none has come since.
        if not self.given_up:
            self.given_up = True
            for exchange in list(self.exchanges.values()):
                task = getattr(exchange, "task", None)
                if task is not None:
                    # It may still have to roll back what it has begun, for which the program must not have shut down.
                    task.cancel()
                else:
                    # One on a thread can't be cancelled.
                    self.forget(exchange)
        if self.idle is not None:
            self.loop.call_later(last_turns, asgi.settle, self.idle, None)

    async def end(self):
        for exchange in list(self.exchanges.values()):
            exchange.stop()
        if self.exchanges:
            self.idle = self.loop.create_future()
            await self.idle
        try:
            await self.program.shutdown()
        finally:
            self.loop.stop()

    def mark(self):
        """How far the start has come, for the timeline."""
        self.marks.append(time.monotonic_ns())

    def run(self, began):
        self.marks.append(began)
        # While nobody waits: a loop, and what the interpreter itself consists of out of the collector's way.
        self.loop = asyncio.new_event_loop()
        gc.collect()
        gc.freeze()
        self.mark()
        kind, payload = self.channel.read_first()
        self.mark()
        if kind != LOAD:
            sys.exit(f"the first frame is of the kind {kind}, not a program to load")
        load = marshal.loads(payload)
        program.prepare(load)
        self.loop = loop = program.event_loop_for(self.loop)
        asyncio.set_event_loop(loop)
        self.channel.loop = loop
        self.begin_task = beginner(loop)
        try:
            name, target, kind = program.find(load)
            self.mark()
            self.program = self.interface(kind)(target, self, load)
        except Refused as error:
            self.refuse(str(error), None)
        except BaseException as error:
            self.refuse(last_line(error) + advice(error, load["root"]), own_traceback(error))
        found = {"found": f"`{name}` is {kind}", "websockets": self.program.websockets}
        # The loop runs from here to the end: each run of its own would be some turns more.
        loop.call_soon(self.program.start, lambda reason: self.started(found, reason))
        status, worker = 0, os.getpid()
        try:
            loop.run_forever()
        except BaseException as error:
            if os.getpid() != worker:
                # A child that a task has forked, which has no part in the channel.
                raise
            # A task of the program's own has called sys.exit(). Its threads have no say in when that is.
            sys.stderr.write(own_traceback(error))
            status = exit_status(error)
        self.channel.flush_blocking()
        if self.stopping and callable(self.on_term):
            try:
                self.on_term(signal.SIGTERM, None)
            except (SystemExit, KeyboardInterrupt):
                pass
            except BaseException as error:
                sys.stderr.write(own_traceback(error))
        leave(status)

    def started(self, found, reason):
        """The program has started, or can't: for the `reason`."""
        if reason is not None:
            self.refuse(reason, None)
        self.mark()
        found["marks"] = [mark // 1000 for mark in self.marks]
        try:
            self.say(READY, json.dumps(found).encode())
        except OSError:
            # Nobody waits for it any more.
            leave(0)
        # The program as it was imported stays, too. What garbage there is among it is not worth the time to find it.
        gc.freeze()
        self.channel.attach(self.loop, self.on_frame, self.stop)
        # The program's own handler has its turn in the end, when its events are through.
        self.on_term = signal.getsignal(signal.SIGTERM)
        self.loop.add_signal_handler(signal.SIGTERM, self.stop)
        self.loop.add_signal_handler(signal.SIGCONT, reseed)
        keep_signals_of_children(signal.getsignal(signal.SIGTERM))
        if self.channel.rest:
            rest, self.channel.rest = self.channel.rest, b""
            self.channel.parse(memoryview(rest))

    @staticmethod
    def interface(kind):
        # What a program doesn't use it doesn't wait for.
        if kind == program.ASGI:
            return asgi.Application
        if kind == program.WSGI:
            from . import wsgi

            return wsgi.Application
        from . import handler

        return handler.Handler

    def refuse(self, message, text):
        self.channel.sock.setblocking(True)
        try:
            self.say(REFUSED, fault(message, text))
        finally:
            leave(1)

    def say(self, kind, payload):
        self.channel.sock.sendall(HEADER.pack(len(payload), 0, kind) + payload)


def reseed():
    """The machine was stopped, or is a copy of one that was: its twin must not have the same random numbers."""
    if random := sys.modules.get("random"):
        random.seed()


def keep_signals_of_children(ours):
    """A forked child has the end of the pipe by which the worker's loop hears of signals: one that ends the child, as
    multiprocessing's pools end theirs, would end the worker. It waits until the child has no part in that any more."""
    mask = threading.local()

    def before():
        mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def after_in_parent():
        signal.pthread_sigmask(signal.SIG_SETMASK, mask.before)

    def after_in_child():
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCONT):
            if signal.getsignal(number) == ours:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask.before)

    os.register_at_fork(before=before, after_in_parent=after_in_parent, after_in_child=after_in_child)


def beginner(loop):
    """What begins a task and runs its first step at once, not in the loop's next turn: most events end in it.

    Python 3.12's eager tasks do that, too, but are no tasks of the loop while they run so, and a program may look for
    its own.
    """
    if hasattr(loop, "_ready"):
        return lambda coroutine: begin_in_queue(loop, coroutine)
    if type(loop).__module__ == "uvloop" and hasattr(loop, "__dict__"):
        return Beginner(loop).begin
    return loop.create_task


def begin_in_queue(loop, coroutine):
    # asyncio's own loops: the step is the last of what is to be run in the next turn.
    ready = loop._ready
    before = len(ready)
    task = loop.create_task(coroutine)
    if len(ready) == before + 1:
        ready.pop()._run()
    return task


class Beginner:
    """uvloop's: its queue can't be seen, but how a task puts its first step there can."""

    def __init__(self, loop):
        self.loop = loop
        self.step = None

    def begin(self, coroutine):
        loop = self.loop
        loop.call_soon = self.catch
        try:
            task = loop.create_task(coroutine)
        finally:
            del loop.call_soon
        step, self.step = self.step, None
        if step is not None:
            callback, arguments, context = step
            try:
                context.run(callback, *arguments)
            except Exception as error:
                loop.call_exception_handler({"message": "a task could not begin", "exception": error})
        return task

    def catch(self, callback, *arguments, context=None):
        if self.step is not None or context is None:
            return type(self.loop).call_soon(self.loop, callback, *arguments, context=context)
        self.step = callback, arguments, context


def exit_status(error):
    """As Python itself has it."""
    if not isinstance(error, SystemExit):
        return 1
    if error.code is None:
        return 0
    return error.code if isinstance(error.code, int) else 1


def leave(status):
    """Ends the process though threads of the program may still run."""
    atexit._run_exitfuncs()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass
    output.end()
    os._exit(status)


def main(began):
    descriptor = int(sys.argv[1])
    # What the program starts has no business with the channel.
    os.set_inheritable(descriptor, False)
    output.begin()
    Worker(Channel(socket.socket(fileno=descriptor))).run(began)
