package signer

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"

	"ferrule/internal/hint"
)

// Listen makes the socket. Mode 0600 lets in the helper's own user and root, 0660 the group
// gid too (-1: the process's own); whoever gets that far is still asked for by Serve. A socket
// that nobody listens on any more is replaced, anything else at the path is not.
func Listen(path string, mode fs.FileMode, gid int) (*net.UnixListener, error) {
	if len(path) > maxPath {
		return nil, fmt.Errorf("listening on %s: a socket's path has at most %d bytes", path, maxPath)
	}
	if err := clear(path); err != nil {
		return nil, fmt.Errorf("listening on %s: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("making the socket: %w", err)
	}
	if gid >= 0 {
		err = os.Lchown(path, -1, gid)
	}
	if err = errors.Join(err, os.Chmod(path, mode)); err != nil {
		return nil, errors.Join(fmt.Errorf("making the socket: %w", err), l.Close())
	}
	return l, nil
}

// clear removes what a killed helper left.
func clear(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("there is something else than a socket")
	}
	conn, err := net.Dial("unix", path)
	switch {
	case err == nil:
		return hint.With(errors.Join(errors.New("another helper listens there"), conn.Close()), "stop it, or give this one another --socket")
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	}
	return err
}
