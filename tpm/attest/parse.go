package attest

import "errors"

// ParseEvidence reads the JSON of an Evidence.
func ParseEvidence(data []byte) (Evidence, error) { return Evidence{}, errors.ErrUnsupported }

// ParseChallenge reads the JSON of a Challenge.
func ParseChallenge(data []byte) (Challenge, error) { return Challenge{}, errors.ErrUnsupported }
