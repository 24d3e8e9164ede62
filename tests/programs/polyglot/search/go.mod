module search

go 1.21
