#!/bin/sh
exec puma --bind "tcp://$HOST:$PORT" --threads 1:4 config.ru
