package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"math/rand/v2"
	"sync"
	"testing"

	"ferrule/agent/identity"
)

// Acceptance (lua-resty-http#306): a device with two identities, the factory's and the operational
// one, connects 1,000 times to one host and port, in any order and eight at a time, with sessions
// that are resumed. The server's log has, for each connection, the certificate that was meant.
func TestTwoRolesAreNeverMixed(t *testing.T) {
	onBothVersions(t, func(t *testing.T, version uint16) {
		const connections, atOnce = 1000, 8
		d := newDesk(t)
		c, o := software(), d.on(options(t.TempDir()))
		c.Factory = identity.Factory{Key: "file:factory.pem", Certificate: "factory.crt"}
		deskEnroll(t, d, c, o, identity.EnrollRequest{Token: d.token("serial-7"), Factory: true})
		deskEnroll(t, d, c, o, identity.EnrollRequest{})
		roles := []*identity.Identity{mustOpen(t, c, o), mustOpen(t, c.ForFactory(), o)}
		if roles[0].Device() != "serial-7" || face(roles[0].Current()) == face(roles[1].Current()) {
			t.Fatalf("%s and %s", face(roles[0].Current()), face(roles[1].Current()))
		}
		broker := newTrueBroker(t, d)
		f := &factory{dir: t.TempDir()}
		address := f.serverWith(t, broker.config.Certificates[0], version, broker.roots)

		meant := make([]int, connections)
		for n, dice := 0, rand.New(rand.NewPCG(3, 6)); n < connections; n++ {
			meant[n] = dice.IntN(len(roles))
		}
		shown := interleave(t, roles, meant, atOnce, broker.roots, address)
		wrong := 0
		for n := range meant {
			if shown[n] != face(roles[meant[n]].Current()) {
				wrong++
			}
		}
		if wrong > 0 {
			t.Errorf("%d of %d connections showed the other certificate", wrong, connections)
		}
		for n, role := range roles {
			s := role.Status()
			want := uint64(0)
			for _, m := range meant {
				if m == n {
					want++
				}
			}
			if s.FullHandshakes+s.Resumed != want || s.Resumed < want/2 {
				t.Errorf("role %d: %d full handshakes, %d resumed, of %d", n, s.FullHandshakes, s.Resumed, want)
			}
			t.Logf("%s, role %d: %d full handshakes, %d resumed", tls.VersionName(version), n, s.FullHandshakes, s.Resumed)
		}
	})
}

// interleave makes one connection for each number in meant, by that role, atOnce at a time, and
// returns what the server was shown.
func interleave(t *testing.T, roles []*identity.Identity, meant []int, atOnce int, roots *x509.CertPool, address string) []string {
	shown := make([]string, len(meant))
	var all sync.WaitGroup
	for worker := range atOnce {
		all.Go(func() {
			for n := worker; n < len(meant); n += atOnce {
				seen, _, err := meet(roles[meant[n]].Current(), roots, address)
				if err != nil {
					t.Errorf("connection %d: %v", n, err)
				}
				shown[n] = seen
			}
		})
	}
	all.Wait()
	return shown
}
