package main

import (
	"encoding/json"
	"regexp"
	"runtime/debug"
	"slices"
	"testing"
)

func TestBill(t *testing.T) {
	b := newBill()
	if !regexp.MustCompile(`^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(b.SerialNumber) {
		t.Errorf("serial number %q", b.SerialNumber)
	}
	refs := map[string]bool{b.Metadata.Component.Ref: true}
	for _, c := range b.Components {
		if refs[c.Ref] || c.Name == "" || c.Version == "" && c.Name != "ferrule" {
			t.Errorf("%+v", c)
		}
		refs[c.Ref] = true
	}
	for _, ref := range b.Dependencies[0].DependsOn {
		if !refs[ref] {
			t.Errorf("%s is no component", ref)
		}
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		t.Fatal("no build information")
	}
	for _, dep := range info.Deps {
		if !slices.ContainsFunc(b.Components, func(c component) bool { return c.Name == dep.Path && c.Version == dep.Version }) {
			t.Errorf("%s %s is missing", dep.Path, dep.Version)
		}
	}
	one, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	other, err := json.Marshal(newBill())
	if err != nil || string(one) != string(other) {
		t.Error("two bills of one program differ")
	}
}

func TestModuleOf(t *testing.T) {
	c := moduleOf(&debug.Module{Path: "example.org/A/b", Version: "v1.0.0", Replace: &debug.Module{Path: "github.com/Azure/x", Version: "v2.0.0+incompatible", Sum: "h1:AQID"}})
	if c.Purl != "pkg:golang/github.com/azure/x@v2.0.0%2Bincompatible" || c.Name != "github.com/Azure/x" {
		t.Errorf("%+v", c)
	}
	want := []property{{"go:replaces", "example.org/A/b@v1.0.0"}, {"go:sum", "h1:AQID"}, {"go:sum:sha256", "010203"}}
	if !slices.Equal(c.Properties, want) {
		t.Errorf("%v", c.Properties)
	}
}
