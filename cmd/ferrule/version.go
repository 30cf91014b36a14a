package main

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"
)

// module is one row of the bill of materials.
type module struct {
	Path    string `json:"path"`
	Version string `json:"version"`
	Sum     string `json:"sum,omitempty"`
}

func runVersion(_ context.Context, e *env) error {
	if !e.json {
		fmt.Fprintf(e.stdout, "ferrule %s (%s, %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return nil
	}
	bill := struct {
		Version string   `json:"version"`
		Built   string   `json:"built,omitempty"`
		Go      string   `json:"go"`
		OS      string   `json:"os"`
		Arch    string   `json:"arch"`
		Modules []module `json:"modules"`
	}{Version: version, Built: built, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH, Modules: []module{}}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			bill.Modules = append(bill.Modules, module{Path: dep.Path, Version: dep.Version, Sum: dep.Sum})
		}
	}
	return printJSON(e, bill)
}

func printJSON(e *env, v any) error {
	encoder := json.NewEncoder(e.stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}
