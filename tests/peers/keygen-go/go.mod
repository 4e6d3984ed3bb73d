module keygen

go 1.25
