"""polyinit's Python worker: runs one program and takes its events over a socket.

Between `engine::worker` (the other end of the socket) and the program. Needs nothing but the standard library of
CPython 3.9 or newer. It is embedded in the binary and reaches the interpreter over that same socket, before the first
frame, so that no file of it need be in the program's file system.

    main      the worker's life: load, ready, events, stop
    channel   frames in and out of the socket
    program   imports the program and tells what it is
    exchange  one HTTP event: its body, its reply, and the windows of both
    asgi      ASGI 3.0 applications: HTTP, network messages, lifespan
    websocket ASGI 3.0 applications: WebSocket
    wsgi      WSGI applications, on threads
    handler   plain functions
    output    what the program prints, line by line with the event's id
    report    failures in the program's own terms

The frames are described in `engine/worker/frame.rs`, the heads inside them in `engine/python/mod.rs`.
"""
