package e2e

import (
	"os"
	"path/filepath"
	"testing"
)

// checkBill checks a bill of materials with the schema of CycloneDX 1.6: Python's jsonschema, with the
// three schemas that it refers to, and nothing from any network.
const checkBill = `
import json, sys, jsonschema
folder, bill = sys.argv[1], json.load(open(sys.argv[2]))
load = lambda name: json.load(open(folder + "/" + name + ".SNAPSHOT.schema.json"))
schema = load("bom-1.6")
names = ("spdx", "jsf-0.82", "cryptography-defs")
store = {"http://cyclonedx.org/schema/" + name + ".SNAPSHOT.schema.json": load(name) for name in names}
resolver = jsonschema.RefResolver.from_schema(schema, store=store)
checker = jsonschema.Draft7Validator(schema, resolver=resolver, format_checker=jsonschema.draft7_format_checker)
errors = [f"{list(e.absolute_path)}: {e.message[:200]}" for e in checker.iter_errors(bill)]
print("\n".join(errors) or "valid")
bill["components"][0]["type"] = "nonsense" # the control
sys.exit(0 if not errors and list(checker.iter_errors(bill)) else 1)
`

func TestBillOfMaterials(t *testing.T) {
	mustRun(t, "", "bash", "../cyclonedx.sh")
	folder, err := filepath.Abs("../../.cache/cyclonedx")
	if err != nil {
		t.Fatal(err)
	}
	for _, on := range []target{native, armv6} {
		bill := mustRun(t, "", append(build(t, "ferrule", on), "version", "--json")...)
		path := filepath.Join(t.TempDir(), "bill.json")
		if err := os.WriteFile(path, []byte(bill), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, stderr, code := run(t, "", "/usr/bin/python3", "-c", checkBill, folder, path); code != 0 {
			t.Errorf("%s: %s%s (is python3-jsonschema missing? run: make deps)", on.name, out, stderr)
		}
	}
}
