package profile

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"ferrule/internal/hint"
	"ferrule/internal/quantity"
	"ferrule/internal/strict"
)

//go:embed library/*.toml
var builtIn embed.FS

const (
	extension = ".toml"
	maxFile   = 1 << 20 // bytes of one profile
)

// ErrUnknown says that the library has no profile of that name.
var ErrUnknown = errors.New("unknown profile")

// Library is the profiles that are built in and those of the user's own directories, which go
// before. It is immutable. Only the user's files are read when it is loaded; one that is built in
// is read when it is asked for.
type Library struct {
	own    map[string]own // of the user, by name
	shared fs.FS
}

// own is one file of the user: a profile, or what is wrong with it.
type own struct {
	path    string
	profile Profile
	err     error
}

// Load reads the user's own directories; a file of a later one goes before a file of the same name
// of an earlier one, and all of them go before the profiles that are built in. No directory at all is
// no mistake.
//
// The Library is always usable. The error joins what is wrong with each file, as *strict.Error where it
// is at a place in the file, and with directories that cannot be read. A broken file hides a
// built-in profile of its name all the same: who wrote it does not want that one, and Get says
// what is wrong.
func Load(directories ...string) (*Library, error) {
	shared, err := fs.Sub(builtIn, "library")
	l := &Library{own: make(map[string]own), shared: shared}
	problems := []error{err}
	for _, directory := range directories {
		problems = append(problems, l.read(directory))
	}
	for _, name := range slices.Sorted(maps.Keys(l.own)) {
		problems = append(problems, l.own[name].err)
	}
	return l, errors.Join(problems...)
}

// read takes all profiles of a directory.
func (l *Library) read(directory string) error {
	entries, err := os.ReadDir(directory)
	if err != nil {
		return hint.With(fmt.Errorf("reading profiles: %w", err), "make the directory, or correct profile_dir")
	}
	for _, e := range entries {
		name, isProfile := strings.CutSuffix(e.Name(), extension)
		if !isProfile || strings.HasPrefix(name, ".") || e.IsDir() {
			continue
		}
		file := own{path: filepath.Join(directory, e.Name())}
		file.profile, file.err = readFile(os.DirFS(directory), e.Name(), file.path)
		l.own[name] = file
	}
	return nil
}

// readFile reads the profile name of files; shown is what errors call it.
func readFile(files fs.FS, name, shown string) (Profile, error) {
	info, err := fs.Stat(files, name)
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("%s is no file", shown)
	case info.Size() > maxFile:
		err = fmt.Errorf("%s is larger than %s", shown, quantity.Size(maxFile))
	}
	if err != nil {
		return Profile{}, fmt.Errorf("reading a profile: %w", err)
	}
	text, err := fs.ReadFile(files, name)
	if err != nil {
		return Profile{}, fmt.Errorf("reading a profile: %w", err)
	}
	return Parse(shown, text)
}

// Get returns the profile of that name. The error is ErrUnknown, with the names that come
// nearest as its hint, or what is wrong with the user's own file.
func (l *Library) Get(name string) (Profile, error) {
	if file, ok := l.own[name]; ok {
		return file.profile, file.err
	}
	if validName(name) {
		p, err := readFile(l.shared, name+extension, name+extension)
		if !errors.Is(err, fs.ErrNotExist) {
			return p, err
		}
	}
	err := fmt.Errorf("%w %q", ErrUnknown, name)
	if near := strict.Nearest(name, l.names()); len(near) > 0 {
		return Profile{}, hint.With(err, "did you mean "+strings.Join(near, ", ")+"?")
	}
	return Profile{}, hint.With(err, "ferrule check --profiles lists them; docs/profiles.md says how to write one")
}

// names returns the names of all profiles, sorted.
func (l *Library) names() []string {
	names := slices.Collect(maps.Keys(l.own))
	files, _ := fs.Glob(l.shared, "*"+extension) // the pattern is sound
	for _, file := range files {
		names = append(names, strings.TrimSuffix(path.Base(file), extension))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// List returns all profiles that can be used, by name.
func (l *Library) List() []Summary {
	var list []Summary
	for _, name := range l.names() {
		p, err := l.Get(name)
		if err != nil {
			continue
		}
		list = append(list, Summary{Name: p.Name, Title: p.Title, Manufacturer: p.Manufacturer, Models: p.Models,
			Protocol: p.Protocol, Points: len(p.Points), File: l.own[name].path})
	}
	return list
}
