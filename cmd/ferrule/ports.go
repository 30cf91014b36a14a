package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"

	"ferrule/hw/port"
)

// runPorts lists the serial ports. It opens none of them: that alone can restart what is behind.
func runPorts(_ context.Context, e *env) error {
	infos, err := port.List()
	if err != nil {
		return withCode(exitLine, err)
	}
	if e.json {
		return printJSON(e, infos)
	}
	return printPorts(e.stdout, infos)
}

// printPorts gives each port a line with its best name, and its other names lines of their own.
func printPorts(w io.Writer, infos []port.Info) error {
	if len(infos) == 0 {
		_, err := fmt.Fprintln(w, "no serial ports found")
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "PORT\tSTABLE NAMES\tDRIVER\tPRODUCT")
	for _, info := range infos {
		names := stableNames(info)
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", info.Path, names[0], info.Driver, visible(info.Product))
		for _, name := range names[1:] {
			fmt.Fprintf(table, "\t%s\t\t\n", name)
		}
	}
	return table.Flush()
}

// stableNames are the names that survive a replug, those that follow the adapter before the one
// that follows the socket. A port that is soldered in needs none.
func stableNames(info port.Info) []string {
	var names []string
	for _, name := range []string{info.USB, info.ByID, info.ByPath} {
		if name != "" {
			names = append(names, visible(name))
		}
	}
	if names == nil {
		names = []string{"-"}
	}
	return names
}

// visible keeps what a device says of itself from steering the terminal.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
