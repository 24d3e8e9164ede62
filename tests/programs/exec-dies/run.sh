#!/bin/sh
echo "exec-dies: cannot open /etc/exec-dies.conf" >&2
echo "exec-dies: giving up" >&2
exit 7
