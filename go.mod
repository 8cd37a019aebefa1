module github.com/every-channel/ecboot

go 1.26
