module example.com/recorder

go 1.21
