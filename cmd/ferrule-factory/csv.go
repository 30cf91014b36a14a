package main

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"ferrule/agent/enroll/registrar/records"
	"ferrule/internal/disk"
	"ferrule/internal/hint"
)

// Bounds of a file of devices.
const (
	maxDevicesFile = 32 << 20
	maxDevices     = 100_000
)

// The columns with a meaning: the first is the device's id, the others are for
// build/provision.sh. Any further column is the reader's own.
const deviceColumn = "device"

// readDevices reads the ids of a CSV file, whose first line names the columns. The first
// mistake is told with its line.
func readDevices(path string) ([]string, error) {
	text, err := disk.ReadFile(disk.OS(), path, maxDevicesFile)
	if err != nil {
		return nil, fmt.Errorf("reading the devices: %w", err)
	}
	devices, err := parseDevices(text)
	if err != nil {
		return nil, hint.With(fmt.Errorf("reading %s: %w", path, err), "its first line is device,gateway,tpm and any other columns; each further line is a device")
	}
	return devices, nil
}

func parseDevices(text []byte) ([]string, error) {
	text = bytes.TrimPrefix(text, []byte("\ufeff")) // spreadsheets write it
	reader := csv.NewReader(bytes.NewReader(text))
	header, err := reader.Read()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("it is empty")
	}
	if err != nil {
		return nil, err
	}
	if err := checkHeader(header); err != nil {
		return nil, fmt.Errorf("line 1: %w", err)
	}
	var devices []string
	lines := make(map[string]int)
	for {
		row, err := reader.Read() // as many fields as the first line, or an error with its line
		if errors.Is(err, io.EOF) {
			return devices, nil
		}
		if err != nil {
			return nil, err
		}
		line, _ := reader.FieldPos(0)
		device := row[0]
		if err := records.CheckDevice(device); err != nil {
			return nil, fmt.Errorf("line %d: %w", line, err)
		}
		if before, twice := lines[device]; twice {
			return nil, fmt.Errorf("line %d: device %s is in line %d already", line, device, before)
		}
		if len(devices) >= maxDevices {
			return nil, fmt.Errorf("line %d: more than %d devices", line, maxDevices)
		}
		lines[device], devices = line, append(devices, device)
	}
}

func checkHeader(header []string) error {
	if header[0] != deviceColumn {
		return fmt.Errorf("the first column is %q, not %q", header[0], deviceColumn)
	}
	for n, name := range header {
		if strings.TrimSpace(name) == "" {
			return fmt.Errorf("column %d has no name", n+1)
		}
		if slices.Index(header, name) != n {
			return fmt.Errorf("there are two columns %q", name)
		}
	}
	return nil
}
