package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
)

// bill is the bill of materials of this program, from what the Go linker wrote into it. CycloneDX 1.6,
// JSON. It is the same in every run of one program, its serial number too.
type bill struct {
	Schema       string       `json:"$schema"`
	Format       string       `json:"bomFormat"`
	SpecVersion  string       `json:"specVersion"`
	SerialNumber string       `json:"serialNumber"`
	Version      int          `json:"version"`
	Metadata     billMetadata `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type billMetadata struct {
	Timestamp string    `json:"timestamp,omitempty"` // of the build's commit
	Component component `json:"component"`
}

// component is one part. The h1 sum that go.sum has of a module is the SHA-256 of a list of the SHA-256 of
// its files: no digest of anything that could be downloaded, so it is a property, and none of CycloneDX's
// hashes.
type component struct {
	Type       string     `json:"type"`
	Ref        string     `json:"bom-ref"`
	Name       string     `json:"name"`
	Version    string     `json:"version"`
	Licenses   []license  `json:"licenses,omitempty"`
	Purl       string     `json:"purl"`
	Properties []property `json:"properties,omitempty"`
}

type license struct {
	License struct {
		ID string `json:"id"`
	} `json:"license"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type dependency struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn,omitempty"`
}

func newBill() bill {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	b := bill{
		Schema: "http://cyclonedx.org/schema/bom-1.6.schema.json", Format: "CycloneDX", SpecVersion: "1.6", Version: 1,
		Metadata: billMetadata{Timestamp: built, Component: self(info)},
	}
	for _, dep := range info.Deps {
		b.Components = append(b.Components, moduleOf(dep))
	}
	goVersion := strings.TrimPrefix(runtime.Version(), "go")
	stdlib := component{Type: "library", Name: "std", Version: goVersion, Purl: purl("std", goVersion)}
	stdlib.Ref = stdlib.Purl
	b.Components = append(b.Components, stdlib)
	slices.SortFunc(b.Components, func(a, b component) int { return cmp.Compare(a.Ref, b.Ref) })
	whole := dependency{Ref: b.Metadata.Component.Ref}
	for _, c := range b.Components {
		whole.DependsOn = append(whole.DependsOn, c.Ref)
	}
	b.Dependencies = []dependency{whole}
	b.SerialNumber = b.serial()
	return b
}

// self is this program.
func self(info *debug.BuildInfo) component {
	c := component{Type: "application", Name: "ferrule", Version: version, Purl: "pkg:generic/ferrule@" + escape(version)}
	c.Ref = c.Purl
	c.Licenses = make([]license, 1)
	c.Licenses[0].License.ID = "Apache-2.0"
	c.Properties = []property{
		{"ferrule:os", runtime.GOOS}, {"ferrule:arch", runtime.GOARCH}, {"ferrule:go", runtime.Version()},
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "GOARM", "GOAMD64", "GOARM64", "GORISCV64", "CGO_ENABLED", "-tags", "vcs.revision", "vcs.modified":
			c.Properties = append(c.Properties, property{"go:" + s.Key, s.Value})
		}
	}
	return c
}

// moduleOf is a module, or what replaces it.
func moduleOf(m *debug.Module) component {
	c := component{Type: "library", Name: m.Path, Version: m.Version}
	if m.Replace != nil {
		c.Properties = append(c.Properties, property{"go:replaces", m.Path + "@" + m.Version})
		m = m.Replace
		c.Name, c.Version = m.Path, m.Version
	}
	c.Purl = purl(m.Path, m.Version)
	c.Ref = c.Purl
	if m.Sum != "" {
		c.Properties = append(c.Properties, property{"go:sum", m.Sum})
		if raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:")); err == nil {
			c.Properties = append(c.Properties, property{"go:sum:sha256", hex.EncodeToString(raw)})
		}
	}
	return c
}

// purl names a Go module. package-url/purl-spec, types/golang.
func purl(path, version string) string {
	parts := strings.Split(strings.ToLower(path), "/")
	for i, part := range parts {
		parts[i] = escape(part)
	}
	return "pkg:golang/" + strings.Join(parts, "/") + "@" + escape(version)
}

// escape is PathEscape, and + too, which purls want escaped.
func escape(s string) string { return strings.ReplaceAll(url.PathEscape(s), "+", "%2B") }

// serial is a UUID of all that the bill says: version 8 of RFC 9562, which is for digests of one's own.
func (b *bill) serial() string {
	h := sha256.New()
	for _, c := range append([]component{b.Metadata.Component}, b.Components...) {
		fmt.Fprintf(h, "%q %q\n", c.Ref, c.Properties)
	}
	fmt.Fprintf(h, "%q\n", b.Metadata.Timestamp)
	u := h.Sum(nil)[:16]
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}
