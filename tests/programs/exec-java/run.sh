#!/bin/sh
# The smaller heap and the simpler compiler start sooner, which counts for more here.
exec java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xshare:auto -jar app.jar
