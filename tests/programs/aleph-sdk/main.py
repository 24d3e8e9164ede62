"""A program for the network's own SDK: its wrapper around an ASGI application, its cache and its remote account, all of
which reach the host through the guest API."""

import asyncio
import collections
import json
import os

from aleph.sdk.chains.remote import RemoteAccount
from aleph.sdk.vm.app import AlephApp
from aleph.sdk.vm.cache import VmCache
from fastapi import FastAPI

http_app = FastAPI()
app = AlephApp(http_app=http_app)


@http_app.get("/cache")
async def cache():
    cache = VmCache()
    before = await cache.get("greeting")
    await cache.set("greeting", "hello, host")
    await cache.set("binary", bytes(range(256)) * 1000)
    after = await cache.get("greeting")
    keys = await cache.keys("*ree*")
    binary = await cache.get("binary")
    await cache.delete("greeting")
    return {
        "before": before,
        "after": after.decode(),
        "keys": keys,
        "binary": len(binary),
        "deleted": await cache.get("greeting") is None,
    }


@http_app.get("/account")
async def account():
    account = await RemoteAccount.from_crypto_host()
    message = {"chain": account.CHAIN, "sender": account.get_address(), "type": "POST", "item_hash": "cafe"}
    return await account.sign_message(message)


@http_app.get("/at-once")
async def at_once(count: int):
    """Holds that many connections to the host open at once, and then asks something over each. Counts the answers by status."""

    async def connected():
        return await asyncio.open_unix_connection(os.environ["ALEPH_API_UNIX_SOCKET"])

    async def status(reader, writer):
        writer.write(b"GET /properties HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return (await reader.readline()).split()[1].decode()

    connections = await asyncio.gather(*(connected() for _ in range(count)))
    statuses = await asyncio.gather(*(status(*connection) for connection in connections))
    # Only now, so that all of them were open when the last one was answered.
    for _, writer in connections:
        writer.close()
    return collections.Counter(statuses)


@app.event(filters=[{"type": "POST"}])
async def on_message(event):
    return {"seen": json.loads(event["body"])["item_hash"]}
