package main

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// loadModules loads /modules/NN-NAME.ko in the order of their names: the image builder sorted
// them so that each comes after those that it needs. One that has no device here is no fault.
func loadModules(log *slog.Logger) {
	names, _ := filepath.Glob("/modules/*.ko") // the pattern is sound, and Glob sorts
	for _, name := range names {
		if err := loadModule(name); err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) {
			log.Error("module not loaded", "name", filepath.Base(name), "err", err)
		}
		_ = os.Remove(name) // it is memory
	}
}

func loadModule(name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	return unix.FinitModule(int(file.Fd()), "", 0)
}
