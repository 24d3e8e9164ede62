"""Where programs run that block: a pool of threads, started as they are needed."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

# Events at once that a worker's threads take; others wait for one.
THREADS = 40


class Threads:
    """The threads of a program, and the way from them back to the loop."""

    def __init__(self, loop):
        self.loop = loop
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="event")

    def run(self, context, work, *arguments):
        """Has a thread do `work` in an event's own context: the thread has had other events, and will have more."""
        self.pool.submit(self.do, context, work, *arguments)

    def do(self, context, work, *arguments):
        """What `work` returns the loop calls once the context is left: the next thread may enter it then."""
        self.call(*context.run(work, *arguments))

    def call(self, function, *arguments):
        """From a thread: has the loop call `function`, and doesn't wait."""
        self.loop.call_soon_threadsafe(function, *arguments)

    def wait_for(self, coroutine):
        """From a thread: has the loop run `coroutine`, and waits for what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()
