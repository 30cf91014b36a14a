// Package role decides what the holder of a client certificate may do at the local API. The
// trap: a name means nothing without the CA that certified it. A rule therefore binds a name to
// the roots that may give it, names are compared byte by byte, and what no rule grants is denied.
package role

import "fmt"

// Role is what somebody may do. Each role holds those before it.
type Role uint8

const (
	// None may do nothing.
	None Role = iota
	// Viewer sees status, readings, metrics and the page.
	Viewer
	// Operator also reads and writes points, and has the agent examine itself.
	Operator
	// Admin may do everything.
	Admin
)

var names = [...]string{None: "none", Viewer: "viewer", Operator: "operator", Admin: "admin"}

func (r Role) String() string {
	if int(r) < len(names) {
		return names[r]
	}
	return fmt.Sprintf("role %d", uint8(r))
}

// MarshalText implements encoding.TextMarshaler.
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler: none, viewer, operator or admin.
func (r *Role) UnmarshalText(text []byte) error {
	for i, name := range names {
		if string(text) == name {
			*r = Role(i)
			return nil
		}
	}
	return fmt.Errorf("role %q is none of viewer, operator, admin", text)
}

// Grant is the outcome for one certificate.
type Grant struct {
	Role Role
	// Name is who it is, for logs: the kind and the value of what matched, as in
	// "uri:spiffe://site/ops/anna". It holds no control characters.
	Name string
}
