#!/bin/sh
# A program that works on something, but never on HTTP.
echo "exec-never-listens: computing"
exec sleep 3600
