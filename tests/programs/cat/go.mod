module example.com/cat

go 1.25
