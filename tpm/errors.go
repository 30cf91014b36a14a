package tpm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"

	"ferrule/internal/hint"

	"github.com/google/go-tpm/tpm2"
)

// What may be wrong with the TPM or the way to it.
var (
	// ErrNoDevice: there is no TPM at the given path.
	ErrNoDevice = errors.New("no TPM there")
	// ErrPermission: there is one, and this user may not open it.
	ErrPermission = errors.New("permission denied")
	// ErrBusy: another process holds the device, or its object slots are full.
	ErrBusy = errors.New("TPM is busy")
	// ErrTimeout: no answer in time, or the TPM asked for repeats beyond the budget.
	ErrTimeout = errors.New("TPM did not answer in time")
	// ErrLockout: the dictionary-attack protection is in lockout.
	ErrLockout = errors.New("TPM is in dictionary-attack lockout")
	// ErrOwnerAuth: the owner hierarchy has a password, so no SRK can be created.
	ErrOwnerAuth = errors.New("TPM owner hierarchy has a password")
)

// What may be wrong with the key.
var (
	// ErrOwnerChanged: this TPM was cleared or is another one than the key was made in.
	ErrOwnerChanged = errors.New("TPM owner changed")
	// ErrKeyCorrupt: the key file or the blob in it is damaged.
	ErrKeyCorrupt = errors.New("key is corrupt")
	// ErrNoKey: there is no key at the given place.
	ErrNoKey = errors.New("no key there")
	// ErrKeyExists: a key would be overwritten.
	ErrKeyExists = errors.New("key exists already")
	// ErrSoftwareKey: the key lies in a file, and that is not allowed.
	ErrSoftwareKey = errors.New("software key refused")
	// ErrUnsupported: understood, and not to be done here; the text says why.
	ErrUnsupported = errors.New("not supported")
)

const (
	hintNoDevice    = "check that the board has a TPM 2.0 and its kernel driver is loaded (ls /dev/tpm*)"
	hintSimulator   = "start the TPM simulator: swtpm socket --tpm2 --flags not-need-init,startup-clear …"
	hintPermission  = "add the service user to group tss, then restart the service"
	hintSocketPerm  = "give the service user write permission on the socket and its folder"
	hintBusy        = "another process holds the raw device; use /dev/tpmrm0, or stop it (fuser -v /dev/tpm0)"
	hintSlots       = "objects left behind fill the TPM; restart it, or run: tpm2_flushcontext --transient-object"
	hintTimeout     = "the TPM or its bus hangs; look at dmesg, then power-cycle the device"
	hintLockout     = "wait for the lockout recovery time, or run: tpm2_dictionarylockout --clear-lockout"
	hintOwnerAuth   = "create the SRK at the factory: tpm2_createprimary -C o -P OWNERAUTH -G ecc256:aes128cfb -g sha256 -a 'fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt' -c srk.ctx, then tpm2_evictcontrol -C o -P OWNERAUTH -c srk.ctx 0x81000001"
	hintOwner       = "the TPM was cleared or replaced, or the disk comes from another device; enroll this device again"
	hintKeyCorrupt  = "restore the key file from a backup of this very device, or remove it and enroll again"
	hintNoKey       = "run: ferrule enroll"
	hintKeyExists   = "use the key that is there, or move it away first"
	hintSoftwareKey = "use a TPM key (tpm2:file=device.key), or set allow_software_key = true and accept a weak key"
	hintInitialize  = "the TPM was not started; give swtpm --flags not-need-init,startup-clear"
	hintNVSpace     = "the TPM's persistent memory is full; free a handle with tpm2_evictcontrol"
)

// openError turns what the operating system says about path into our words.
func openError(path string, err error) error {
	socket := strings.HasPrefix(path, "unix:") || strings.HasPrefix(path, "tcp:")
	says := func(sentinel error, device, simulator string) error {
		if socket {
			device = simulator
		}
		return hint.With(fmt.Errorf("opening TPM %s: %w", path, sentinel), device)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO),
		errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOTDIR):
		return says(ErrNoDevice, hintNoDevice, hintSimulator)
	case errors.Is(err, fs.ErrPermission):
		return says(ErrPermission, hintPermission, hintSocketPerm)
	case errors.Is(err, syscall.EBUSY):
		return says(ErrBusy, hintBusy, hintBusy)
	case isTimeout(err):
		return says(ErrTimeout, hintTimeout, hintSimulator)
	}
	return fmt.Errorf("opening TPM %s: %w", path, err)
}

// isTimeout also knows ETIME, with which the kernel's TPM drivers give up.
func isTimeout(err error) bool {
	var n net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, syscall.ETIME) || errors.As(err, &n) && n.Timeout()
}

// commandError gives the answer rc or transport error err of a command one of our names
// and a repair; doing is gerund-first. It keeps a name that err already has.
func commandError(doing string, err error) error {
	if err == nil {
		return nil
	}
	repair, sentinel := meaning(err)
	switch {
	case repair == "":
		return fmt.Errorf("%s: %w", doing, err)
	case sentinel == nil || errors.Is(err, sentinel):
		return hint.With(fmt.Errorf("%s: %w", doing, err), repair)
	}
	return hint.With(fmt.Errorf("%s: %w: %w", doing, sentinel, err), repair)
}

// meaning covers the answers that mean the same whatever the command was.
func meaning(err error) (repair string, sentinel error) {
	switch {
	case hint.Of(err) != "":
		return "", nil
	case errors.Is(err, tpm2.TPMRCLockout):
		return hintLockout, ErrLockout
	case errors.Is(err, tpm2.TPMRCObjectMemory), errors.Is(err, tpm2.TPMRCObjectHandles),
		errors.Is(err, tpm2.TPMRCSessionMemory), errors.Is(err, tpm2.TPMRCMemory):
		return hintSlots, ErrBusy
	case errors.Is(err, tpm2.TPMRCNVSpace):
		return hintNVSpace, nil
	case errors.Is(err, tpm2.TPMRCInitialize):
		return hintInitialize, nil
	case errors.Is(err, ErrTimeout), isTimeout(err):
		return hintTimeout, ErrTimeout
	}
	return "", nil
}

// ownerError is commandError for commands authorised by the owner hierarchy.
func ownerError(doing string, err error) error {
	if errors.Is(err, tpm2.TPMRCBadAuth) || errors.Is(err, tpm2.TPMRCAuthFail) {
		return hint.With(fmt.Errorf("%s: %w: %w", doing, ErrOwnerAuth, err), hintOwnerAuth)
	}
	return commandError(doing, err)
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUnsupported, fmt.Sprintf(format, args...))
}

func corrupt(format string, args ...any) error {
	return hint.With(fmt.Errorf("%w: %s", ErrKeyCorrupt, fmt.Sprintf(format, args...)), hintKeyCorrupt)
}
