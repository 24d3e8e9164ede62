module exec-go

go 1.21
