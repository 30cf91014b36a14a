package cause

import "errors"

// What the session's policy ends, or holds back, a connection for.
const (
	DuplicateIdentity Cause = "duplicate-identity" // another client uses our client id
	Budget            Cause = "budget"             // the bytes of the day are used up
	Poison            Cause = "poison"             // a message that ended three connections is quarantined
)

// ErrDuplicate: another client throws us out again and again.
var ErrDuplicate = errors.New("thrown out by another client")

// ofPolicy knows what the session decided by itself.
func ofPolicy(_ Stage, err error) (finding, bool) {
	if errors.Is(err, ErrDuplicate) {
		return finding{DuplicateIdentity, SideDevice, "another client uses the client id of this device; the session stays away for a while",
			"find the copy of this gateway's disk or key, or the program that uses its id; then enroll one of the two anew under another name"}, true
	}
	return finding{}, false
}
