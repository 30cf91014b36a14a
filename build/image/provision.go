package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// provision puts files into the folder etc of an image's data partition, which the appliance knows as
// /etc/ferrule: configuration, roots, and the token it enrolls with.
func (b *builder) provision(ctx context.Context, image string, files []string) error {
	at, err := b.offset(ctx, image, "data")
	if err != nil {
		return err
	}
	var commands strings.Builder
	for _, name := range files {
		if _, err := os.Stat(name); err != nil {
			return fmt.Errorf("provisioning: %w", err)
		}
		base := filepath.Base(name)
		if strings.ContainsAny(name, " \"\n") {
			return fmt.Errorf("provisioning: debugfs takes no space and no quote in %q", name)
		}
		// Without the first, the second refuses what is there already.
		fmt.Fprintf(&commands, "rm /etc/%s\nwrite %s /etc/%s\nsif /etc/%s mode 0100644\nsif /etc/%s uid 0\nsif /etc/%s gid 0\n", base, name, base, base, base, base)
	}
	device := fmt.Sprintf("%s?offset=%d", image, at)
	if err := b.tool(ctx, commands.String(), "debugfs", "-w", "-f", "-", device); err != nil {
		return err
	}
	// debugfs says that all went well whatever happens.
	for _, name := range files {
		want, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("provisioning: %w", err)
		}
		copied := filepath.Join(os.TempDir(), fmt.Sprintf("provision-%d", os.Getpid()))
		err = b.tool(ctx, "", "debugfs", "-R", "dump /etc/"+filepath.Base(name)+" "+copied, device)
		got, readErr := os.ReadFile(copied)
		if err := errors.Join(err, readErr, os.Remove(copied)); err != nil {
			return fmt.Errorf("provisioning: %w", err)
		}
		if string(got) != string(want) {
			return fmt.Errorf("provisioning: %s was not written; is the partition full?", name)
		}
	}
	return nil
}

// offset is where a partition begins, in bytes.
func (b *builder) offset(ctx context.Context, image, label string) (int64, error) {
	text, err := b.ask(ctx, "", "sfdisk", "-J", image)
	if err != nil {
		return 0, err
	}
	var table struct {
		PartitionTable struct {
			Partitions []struct {
				Name  string
				Start int64
			}
		}
	}
	if err := json.Unmarshal([]byte(text), &table); err != nil {
		return 0, fmt.Errorf("reading the partitions of %s: %w", image, err)
	}
	for _, p := range table.PartitionTable.Partitions {
		if p.Name == label {
			return p.Start * 512, nil
		}
	}
	return 0, fmt.Errorf("%s has no partition %s", image, label)
}
