package registrar

import (
	"crypto/x509"
	"testing"
	"testing/synctest"
	"time"

	"ferrule/agent/enroll/registrar/ca"
	"ferrule/agent/enroll/registrar/records"
	"ferrule/agent/enroll/wire"
	"ferrule/internal/disk/disktest"
)

// The TPM was cleared, the certificate is gone: the EK is who the device is.
func TestReturn(t *testing.T) {
	d, p := strict(t), newPretender(t, "one")
	must(t, p.enroll(t, d, wire.Begin{Token: d.token(t, "gw-1")}))
	p.rekey(t)
	must(t, p.enroll(t, d, wire.Begin{Device: "gw-1"}))
	if got := d.device(t, "gw-1"); len(got.Certificates) != 2 || got.Certificates[0].State != records.Superseded {
		t.Errorf("the record: %+v", got)
	}
	const unknown = "not known as that device"
	refuses(t, newPretender(t, "two").enroll(t, d, wire.Begin{Device: "gw-1"}), wire.CodeNotEntitled, unknown)
	refuses(t, newPretender(t, "two").enroll(t, d, wire.Begin{Device: "gw-7"}), wire.CodeNotEntitled, unknown)
	refuses(t, p.enroll(t, d, wire.Begin{Device: "../gw-1"}), wire.CodeNotEntitled, "neither a token")
	refuses(t, p.enroll(t, d, wire.Begin{}), wire.CodeNotEntitled, "neither a token")
	d.NoReturn = true
	refuses(t, p.enroll(t, d, wire.Begin{Device: "gw-1"}), wire.CodeNotEntitled, "neither a token")
	soft := registrarOn(t, disktest.New())
	weak := newPretender(t, "")
	must(t, weak.enroll(t, soft, wire.Begin{Token: soft.token(t, "gw-1")}))
	refuses(t, weak.enroll(t, soft, wire.Begin{Device: "gw-1"}), wire.CodeEvidence, "TPM is missing")
	refuses(t, p.enroll(t, soft, wire.Begin{Device: "gw-1"}), wire.CodeNotEntitled, unknown)
}

func TestRenewal(t *testing.T) {
	d, p := strict(t), newPretender(t, "one")
	must(t, p.enroll(t, d, wire.Begin{Token: d.token(t, "gw-1")}))
	first := p.chain
	renew := func(shown []*x509.Certificate) *wire.Error {
		p.shown = shown
		return p.enroll(t, d, wire.Begin{Device: "gw-1"})
	}
	must(t, renew(first))
	second, serial := p.chain, p.serial
	must(t, renew(first)) // the answer was lost: the same key gets the same certificate
	if p.serial != serial {
		t.Error("another certificate for the same request")
	}
	p.rekey(t)
	must(t, renew(first)) // and so was the key
	third := p.chain
	if p.serial == serial {
		t.Error("the certificate of another key")
	}
	refuses(t, renew(second), wire.CodeNotEntitled, "replaced by a newer")
	must(t, renew(third))
	refuses(t, renew(first), wire.CodeNotEntitled, "replaced by a newer")
	p.ek = "two"
	refuses(t, renew(third), wire.CodeEKTaken, "with another TPM")
	p.ek = "one"
	p.shown = third
	refuses(t, p.enroll(t, d, wire.Begin{Device: "gw-2"}), wire.CodeNotEntitled, "another device's")
	if _, err := d.Records.RevokeSerial(t.Context(), p.serial); err != nil {
		t.Fatal(err)
	}
	refuses(t, renew(p.chain), wire.CodeNotEntitled, "was revoked")
	refuses(t, renew(third), wire.CodeNotEntitled, "was revoked") // the one before it is no way round
	refuses(t, renew(nil), wire.CodeNotEntitled, "was revoked")   // and neither is the TPM
	must(t, p.enroll(t, d, wire.Begin{Token: d.token(t, "gw-1")}))
	must(t, renew(p.chain))
}

// A device that was put out comes in by no token of the time before.
func TestRevokedDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, p := strict(t), newPretender(t, "one")
		used, old := d.token(t, "gw-1"), d.token(t, "gw-1")
		must(t, p.enroll(t, d, wire.Begin{Token: used}))
		p.challenge = func() { // it is put out while it enrolls
			if _, err := d.Records.RevokeDevice(t.Context(), "gw-1", false); err != nil {
				t.Fatal(err)
			}
		}
		refuses(t, p.enroll(t, d, wire.Begin{Device: "gw-1"}), wire.CodeNotEntitled, "was revoked")
		p.challenge = nil
		for _, token := range []string{used, old} {
			refuses(t, p.enroll(t, d, wire.Begin{Token: token}), wire.CodeNotEntitled, "was revoked")
		}
		time.Sleep(time.Second) // in the bubble: no time passes
		must(t, p.enroll(t, d, wire.Begin{Token: d.token(t, "gw-1")}))
		p.rekey(t)
		must(t, p.enroll(t, d, wire.Begin{Device: "gw-1"}))
	})
}

func TestCertificatesOfOthers(t *testing.T) {
	d, p := strict(t), newPretender(t, "one")
	must(t, p.enroll(t, d, wire.Begin{Token: d.token(t, "gw-1")}))
	other := deskOn(t, disktest.New(), caDir, Config{})
	foreign, err := other.CA.Device(ca.Leaf{Device: "gw-1", Key: &p.key.PublicKey, Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	unrecorded, err := d.CA.Device(ca.Leaf{Device: "gw-1", Key: &p.key.PublicKey, Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	odd, err := d.CA.Device(ca.Leaf{Device: "gw 1", Key: &p.key.PublicKey, Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name  string
		shown []*x509.Certificate
		says  string
	}{
		{"of another CA", foreign, "not on record"},
		{"of this CA, never issued", unrecorded, "not on record"},
		{"of no device", odd, "names no device"},
		{"of the CA itself", []*x509.Certificate{d.CA.DeviceCA()}, "names no device"},
	} {
		p.shown = test.shown
		t.Run(test.name, func(t *testing.T) { refuses(t, p.enroll(t, d, wire.Begin{}), wire.CodeNotEntitled, test.says) })
	}
	d.FactoryRoots = x509.NewCertPool()
	d.FactoryRoots.AddCert(d.CA.DeviceCA()) // a factory whose devices are not these
	p.shown = foreign
	refuses(t, p.enroll(t, d, wire.Begin{}), wire.CodeNotEntitled, "not of a factory that is trusted")
}

func TestExpiredCertificates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, p := strict(t), newPretender(t, "one")
		must(t, p.enroll(t, d, wire.Begin{Token: d.token(t, "gw-1")}))
		time.Sleep(2 * time.Hour) // in the bubble: no time passes
		p.shown = p.chain
		refuses(t, p.enroll(t, d, wire.Begin{}), wire.CodeNotEntitled, "expired on")
		p.shown = nil
		must(t, p.enroll(t, d, wire.Begin{Device: "gw-1"}))
	})
}

// Who loses an answer gets it again; who is not helped by a certificate gets another.
func TestAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, p := deskOn(t, disktest.New(), caDir, Config{Life: 24 * time.Hour}), newPretender(t, "one")
		again := func(q wire.Begin, same bool) {
			t.Helper()
			before := p.serial
			must(t, p.enroll(t, d, q))
			if (p.serial == before) != same {
				t.Errorf("the same certificate: %v, want %v", p.serial == before, same)
			}
		}
		token := wire.Begin{Token: d.token(t, "gw-1")}
		again(token, false)
		time.Sleep(20 * time.Hour)
		again(token, true) // for as long as it is valid
		again(wire.Begin{Device: "gw-1"}, false)
		time.Sleep(askedAgain / 2)
		again(wire.Begin{Device: "gw-1"}, true)
		time.Sleep(askedAgain)
		again(wire.Begin{Device: "gw-1"}, false)
		refuses(t, p.enroll(t, d, token), wire.CodeTokenUsed, "replaced since")
		p.shown = p.chain
		again(wire.Begin{}, false)
		time.Sleep(10 * time.Hour)
		again(wire.Begin{}, true)
		time.Sleep(3 * time.Hour)
		again(wire.Begin{}, false) // less than half of its life is left
		p.shown = nil
		late := wire.Begin{Token: d.token(t, "gw-1")}
		again(late, false)
		time.Sleep(25 * time.Hour)
		refuses(t, p.enroll(t, d, late), wire.CodeTokenExpired, "expired")
	})
}

// The factory makes an IDevID; the site takes it for a first certificate, for that TPM alone.
func TestFactoryCertificate(t *testing.T) {
	factory := deskOn(t, disktest.New(), caDir, Config{Factory: true, Life: ca.FactoryLife})
	p := newPretender(t, "one")
	must(t, p.enroll(t, factory, wire.Begin{Token: factory.token(t, "gw-1")}))
	idevid := p.chain
	if ca.HardwareSerial(idevid[0]) != p.hash() || time.Until(idevid[0].NotAfter) < 19*365*24*time.Hour {
		t.Errorf("the factory certificate names %q and ends on %v", ca.HardwareSerial(idevid[0]), idevid[0].NotAfter)
	}
	roots := x509.NewCertPool()
	roots.AddCert(factory.CA.Root())
	site := deskOn(t, disktest.New(), caDir, Config{FactoryRoots: roots})
	p.shown = idevid
	p.rekey(t)
	must(t, p.enroll(t, site, wire.Begin{}))
	operational := p.chain
	if got := site.device(t, "gw-1"); got.EK != p.hash() || got.Certificates[0].Basis.Kind() != "factory" || got.Certificates[0].Factory {
		t.Errorf("the record: %+v", got)
	}
	stolen := newPretender(t, "two")
	stolen.shown = idevid
	refuses(t, stolen.enroll(t, site, wire.Begin{}), wire.CodeEKTaken, "")
	refuses(t, stolen.enroll(t, deskOn(t, disktest.New(), caDir, Config{FactoryRoots: roots}), wire.Begin{}), wire.CodeEKTaken, "names another TPM")
	refuses(t, p.enroll(t, strict(t), wire.Begin{}), wire.CodeNotEntitled, "not on record")
	lenient := deskOn(t, disktest.New(), caDir, Config{FactoryRoots: roots, AllowSoftwareKeys: true})
	soft := newPretender(t, "")
	soft.shown = idevid
	refuses(t, soft.enroll(t, lenient, wire.Begin{}), wire.CodeEvidence, "TPM is missing")
	// Renewed since, it comes back by the same factory certificate, again and again.
	for range 2 {
		p.shown = operational
		must(t, p.enroll(t, site, wire.Begin{}))
		p.shown = idevid
		p.rekey(t)
		must(t, p.enroll(t, site, wire.Begin{}))
		operational = p.chain
	}
	if _, err := site.Records.RevokeDevice(t.Context(), "gw-1", false); err != nil {
		t.Fatal(err)
	}
	refuses(t, p.enroll(t, site, wire.Begin{}), wire.CodeNotEntitled, "was revoked")
}

// One folder may be factory and site: kinds of certificates are kept apart.
func TestFactoryAndSiteInOneFolder(t *testing.T) {
	disk := disktest.New()
	factory := deskOn(t, disk, caDir, Config{Factory: true, Life: ca.FactoryLife})
	site := deskOn(t, disk, caDir, Config{})
	p := newPretender(t, "one")
	must(t, p.enroll(t, factory, wire.Begin{Token: factory.token(t, "gw-1")}))
	idevid := p.chain
	for range 3 { // an operational certificate never pushes the other aside
		p.shown = idevid
		p.rekey(t)
		must(t, p.enroll(t, site, wire.Begin{}))
		p.shown = p.chain
		must(t, p.enroll(t, site, wire.Begin{}))
	}
	p.shown = p.chain
	refuses(t, p.enroll(t, factory, wire.Begin{}), wire.CodeNotEntitled, "does not entitle to one of the factory")
	p.shown = idevid
	must(t, p.enroll(t, factory, wire.Begin{}))
	if got := site.device(t, "gw-1"); !got.Current(true).Factory || got.Current(false).Factory {
		t.Errorf("%+v", got)
	}
}
