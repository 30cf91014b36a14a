// Deltaapply makes a part of an object, as a device does, and nothing else, so that its memory is
// the decoder's:
//
//	deltaapply OLD OBJECT WANT NEW
//
// OLD is - for a full object. It prints its peak memory in KiB.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"ferrule/firmware/manifest"
	"ferrule/firmware/patch"
)

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_, peak, _ := strings.Cut(string(status), "VmHWM:")
	fmt.Println(strings.Fields(peak)[0])
}

func run(oldName, objectName, wantName, newName string) error {
	var want patch.Want
	text, err := os.ReadFile(wantName)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &want); err != nil {
		return err
	}
	var old io.ReaderAt
	if oldName != "-" {
		f, err := os.Open(oldName)
		if err != nil {
			return err
		}
		defer f.Close()
		old = f
	}
	object, err := os.Open(objectName)
	if err != nil {
		return err
	}
	defer object.Close()
	out, err := os.Create(newName)
	if err != nil {
		return err
	}
	defer out.Close()
	return apply(object, want, old, out)
}

func apply(object io.Reader, want patch.Want, old io.ReaderAt, out io.Writer) error {
	plan, err := patch.ReadHeader(object, want)
	if err != nil {
		return err
	}
	body, segment := make([]byte, patch.BodyLimit), make([]byte, manifest.SegmentSize)
	for k := range plan.Segments() {
		b := body[:plan.Body(k)]
		if _, err := io.ReadFull(object, b); err != nil {
			return err
		}
		made, err := plan.Segment(k, b, old, segment)
		if err != nil {
			return err
		}
		if _, err := out.Write(made); err != nil {
			return err
		}
	}
	return nil
}
