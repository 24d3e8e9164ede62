#!/bin/sh
exec deno run --no-prompt --cached-only --allow-net="$HOST:$PORT" --allow-env=HOST,PORT server.ts
