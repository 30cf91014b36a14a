package main

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
)

func runVersion(_ context.Context, e *env) error {
	if !e.json {
		fmt.Fprintf(e.stdout, "ferrule %s (%s, %s/%s)\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return nil
	}
	return printJSON(e, newBill())
}

func printJSON(e *env, v any) error {
	encoder := json.NewEncoder(e.stdout)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}
