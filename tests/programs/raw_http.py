#!/usr/bin/env python3
import os, socket, sys, threading, time, signal

def read_head(client):
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(65536)
        if not piece:
            return None, b""
        data += piece
    head, rest = data.split(b"\r\n\r\n", 1)
    return head, rest

def reply(client, body, status="200 OK", headers=""):
    client.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode("latin-1") + body)

def connection(client):
    try:
        with client:
            while True:
                head, rest = read_head(client)
                if head is None or serve(client, head, rest) == "close":
                    return
    except OSError:
        pass

def listen(port=int(os.environ["PORT"])):
    server = socket.create_server(("127.0.0.1", port))
    while True:
        client, _ = server.accept()
        threading.Thread(target=connection, args=(client,), daemon=True).start()
