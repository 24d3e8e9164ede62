module exec-machine

go 1.21
