package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"text/tabwriter"
	"time"

	"ferrule/agent/enroll/registrar"
	"ferrule/agent/enroll/registrar/ca"
	"ferrule/agent/enroll/registrar/records"
	"ferrule/internal/hint"
)

// issuedRecord is one line of the records: a certificate with what is known of its device.
type issuedRecord struct {
	Device   string      `json:"device"`
	EK       string      `json:"ek,omitempty"`
	FirstUse bool        `json:"first_use,omitempty"`
	Weak     bool        `json:"weak,omitempty"`
	TPM      records.TPM `json:"tpm,omitzero"`
	records.Certificate
}

// runRecords prints what a batch record needs of every issued certificate, JSON lines.
func runRecords(_ context.Context, e *env) error {
	_, book, err := openCA(e.Flags.Arg(0))
	if err != nil {
		return err
	}
	devices, damaged := book.Devices()
	var lines []issuedRecord
	for _, d := range devices {
		for _, c := range d.Certificates {
			if c.Sealed {
				c.Chain = "" // for the TPM's eyes only, until the device has shown it
			}
			lines = append(lines, issuedRecord{d.ID, d.EK, d.FirstUse, d.Weak, d.TPM, c})
		}
	}
	return cmp.Or(printLines(e, lines), damaged)
}

func runDevices(_ context.Context, e *env) error {
	_, book, err := openCA(e.Flags.Arg(0))
	if err != nil {
		return err
	}
	var devices []records.Device
	var damaged error
	if id := e.Flags.Arg(1); id != "" {
		d, err := book.Device(id)
		if errors.Is(err, records.ErrUnknown) {
			return hint.With(err, "see: ferrule-factory devices "+e.Flags.Arg(0))
		}
		if err != nil {
			return err
		}
		devices = append(devices, d)
	} else {
		devices, damaged = book.Devices()
	}
	if e.json {
		for n := range devices {
			for i := range devices[n].Certificates {
				devices[n].Certificates[i].Chain = ""
			}
		}
		return cmp.Or(printLines(e, devices), damaged)
	}
	return cmp.Or(printDevices(e, devices, e.Flags.NArg() == 2), damaged)
}

func printDevices(e *env, devices []records.Device, whole bool) error {
	table := tabwriter.NewWriter(e.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "DEVICE\tKEY\tEK\tCERTIFICATE\tUNTIL\tSTATE")
	for _, d := range devices {
		for n, c := range d.Certificates {
			if !whole && n != len(d.Certificates)-1 {
				continue
			}
			fmt.Fprintf(table, "%s\t%s\t%.16s\t%s\t%s\t%s\n", d.ID, keyOf(d), cmp.Or(d.EK, "-"), c.Serial, c.NotAfter.Format(time.DateOnly), stateOf(d, c))
		}
	}
	return table.Flush()
}

func keyOf(d records.Device) string {
	switch {
	case d.Weak:
		return "software (weak)"
	case d.FirstUse:
		return "TPM (first use)"
	}
	return strings.Join(strings.Fields("TPM "+printable(d.TPM.Manufacturer)+" "+printable(d.TPM.Model)), " ")
}

func stateOf(d records.Device, c records.Certificate) string {
	var words []string
	if c.Factory {
		words = append(words, "factory")
	}
	switch {
	case !c.Revoked.IsZero():
		words = append(words, "revoked")
	case !d.Revoked.IsZero():
		words = append(words, "device revoked")
	case time.Now().After(c.NotAfter):
		words = append(words, "expired")
	default:
		words = append(words, cmp.Or(string(c.State), "replaced"))
	}
	if c.Sealed {
		words = append(words, "sealed")
	}
	return strings.Join(words, ", ")
}

// printable keeps a TPM's own words from moving a terminal's cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

func revokeFlags(e *env) {
	e.Flags.BoolVar(&e.release, "release", false, "free the device's TPM and id: the TPM may become another device, and the id another board")
	jsonFlag(e)
}

func runRevoke(ctx context.Context, e *env) error {
	authority, book, err := openCA(e.Flags.Arg(0))
	if err != nil {
		return err
	}
	revoked, err := revoke(ctx, book, e.Flags.Arg(1), e.release)
	if err != nil {
		return err
	}
	if err := writeCRL(authority, book); err != nil {
		return err
	}
	if e.json {
		return e.printJSON(revoked)
	}
	for _, serial := range revoked.Serials {
		fmt.Fprintf(e.Stdout, "%s: certificate %s is revoked\n", revoked.Device, serial)
	}
	if revoked.Released != "" {
		fmt.Fprintf(e.Stdout, "%s: the TPM with EK %.16s… is free\n", revoked.Device, revoked.Released)
	}
	fmt.Fprintf(e.Stdout, "Give %s to the brokers; a CA behind the registrar has to be told by itself.\n", "device-ca.crl")
	return nil
}

// revoke takes an id where there is such a device, else the serial number of a certificate.
func revoke(ctx context.Context, book *records.Book, what string, release bool) (records.Revoked, error) {
	_, err := book.Device(what)
	if err == nil {
		return book.RevokeDevice(ctx, what, release)
	}
	if release {
		return records.Revoked{}, hint.With(err, "--release is for a device's id")
	}
	revoked, serialErr := book.RevokeSerial(ctx, what)
	if errors.Is(serialErr, records.ErrUnknown) {
		return revoked, hint.With(fmt.Errorf("%s is neither a device nor the serial number of a certificate: %w", what, records.ErrUnknown), "see: ferrule-factory devices DIR")
	}
	return revoked, serialErr
}

// writeCRL makes the list for brokers say what the records say. Where one cannot be read the list
// stays: what it held may be on it.
func writeCRL(authority *ca.CA, book *records.Book) error {
	devices, err := book.Devices()
	if err != nil {
		return err
	}
	var list []ca.Revocation
	for _, d := range devices {
		for _, c := range d.Certificates {
			if c.Revoked.IsZero() || c.Issuer != registrar.LocalName || time.Now().After(c.NotAfter) {
				continue
			}
			serial, ok := new(big.Int).SetString(c.Serial, 16)
			if !ok {
				return fmt.Errorf("reading the record of %s: serial number %q", d.ID, c.Serial)
			}
			list = append(list, ca.Revocation{Serial: serial, At: c.Revoked})
		}
	}
	return authority.WriteCRL(list)
}
