#!/bin/sh
exec bun run server.ts
