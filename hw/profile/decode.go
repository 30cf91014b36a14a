package profile

import (
	"errors"
	"path/filepath"
	"strings"

	"ferrule/internal/strict"
)

// Parse reads one profile from text, strictly: a key that it does not know is an error. path is
// what errors call the file; its last element without .toml is the name that the profile must
// have. All mistakes are found in one go where the text can be read at all; each is a *strict.Error.
func Parse(path string, text []byte) (Profile, error) {
	var p Profile
	if err := strict.Decode(path, text, &p); err != nil {
		return Profile{}, err
	}
	if p.Protocol == "" {
		p.Protocol = protocolRTU
	}
	c := checker{path: path, places: strict.Find(text)}
	c.profile(p, strings.TrimSuffix(filepath.Base(path), extension))
	if err := errors.Join(c.problems...); err != nil {
		return Profile{}, err
	}
	return p, nil
}
