// Deltamake makes an object, and the file that deltaapply needs to know of it:
//
//	deltamake OLD NEW OBJECT WANT [quick]
//
// OLD is - for a full object. It prints its peak memory in KiB, and the kinds of its segments.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"ferrule/firmware/bundle/delta"
	"ferrule/firmware/patch"
)

func main() {
	if err := run(context.Background(), os.Args[1], os.Args[2], os.Args[3], os.Args[4], len(os.Args) > 5); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func open(name string) (*os.File, int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	return f, info.Size(), nil
}

func run(ctx context.Context, oldName, newName, object, want string, quick bool) error {
	var index *delta.Old
	if oldName != "-" {
		old, size, err := open(oldName)
		if err != nil {
			return err
		}
		if index, err = delta.Index(ctx, old, size); err != nil {
			return err
		}
	}
	image, size, err := open(newName)
	if err != nil {
		return err
	}
	out, err := os.Create(object)
	if err != nil {
		return err
	}
	stats, err := delta.Encode(ctx, out, image, size, index, delta.Options{Quick: quick})
	if err != nil {
		return err
	}
	w := patch.Want{Size: size, SHA256: stats.Image.SHA256, Segments: stats.Image.Segments, Object: stats.Size}
	if index != nil {
		w.From, w.FromSize = index.SHA256(), index.Size()
	}
	text, err := json.Marshal(w)
	if err != nil {
		return err
	}
	if err := os.WriteFile(want, text, 0o644); err != nil {
		return err
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	_, peak, _ := strings.Cut(string(status), "VmHWM:")
	fmt.Println(strings.Fields(peak)[0], "zero, raw, copy, zstd, sum:", stats.Kinds)
	return out.Close()
}
