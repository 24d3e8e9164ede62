#!/bin/sh
# Serves the files beside this script, with what every machine with Python has.
set -eu
cd "$(dirname "$0")/public"
exec python3 -m http.server "${PORT:-8080}" --bind 127.0.0.1
