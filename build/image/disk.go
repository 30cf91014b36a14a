package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// partition is one of a disk's, with the file that fills it ("": zeros).
type partition struct {
	label   string
	kind    string // GPT type or MBR id
	size    int64  // bytes, of whole MiB
	content string
	active  bool
}

// GPT types.
const (
	typeBasic = "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7"
	typeLinux = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
)

// disk writes an image: the partitions one after the other from 1 MiB on, and a MiB for the second
// table at the end. scheme is gpt or dos.
func (b *builder) disk(ctx context.Context, name, scheme string, partitions []partition) (err error) {
	var script strings.Builder
	fmt.Fprintf(&script, "label: %s\n", scheme)
	if scheme == "gpt" {
		fmt.Fprint(&script, "label-id: F3221E00-0000-4000-8000-000000000000\n")
	} else {
		fmt.Fprint(&script, "label-id: 0xf3221e00\n")
	}
	at := int64(mib)
	for n, p := range partitions {
		fmt.Fprintf(&script, "start=%d, size=%d, type=%s", at/512, p.size/512, p.kind)
		if scheme == "gpt" {
			fmt.Fprintf(&script, ", name=%q, uuid=F3221E00-0000-4000-8000-0000000001%02X", p.label, n+1)
		}
		if p.active {
			fmt.Fprint(&script, map[string]string{"gpt": ", attrs=LegacyBIOSBootable", "dos": ", bootable"}[scheme])
		}
		fmt.Fprintln(&script)
		at += p.size
	}
	file, err := os.Create(name)
	if err != nil {
		return fmt.Errorf("writing the disk: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := file.Truncate(at + mib); err != nil {
		return fmt.Errorf("writing the disk: %w", err)
	}
	if err := b.tool(ctx, script.String(), "sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", name); err != nil {
		return err
	}
	at = mib
	for _, p := range partitions {
		if p.content != "" {
			if err := fill(file, at, p); err != nil {
				return fmt.Errorf("writing the partition %s: %w", p.label, err)
			}
		}
		at += p.size
	}
	return nil
}

// fill copies a partition's content and leaves holes where it is zero.
func fill(disk *os.File, at int64, p partition) error {
	source, err := os.Open(p.content)
	if err != nil {
		return err
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		return err
	}
	if info.Size() > p.size {
		return fmt.Errorf("%d bytes do not fit into %d", info.Size(), p.size)
	}
	buffer, zero := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(source, buffer)
		if n > 0 && !bytes.Equal(buffer[:n], zero[:n]) {
			if _, err := disk.WriteAt(buffer[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
