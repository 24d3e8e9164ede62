#!/bin/sh
# PHP's built-in server, with as many processes as it is told to have.
export PHP_CLI_SERVER_WORKERS="${PHP_CLI_SERVER_WORKERS:-4}"
exec php -S "$HOST:$PORT" -t public
