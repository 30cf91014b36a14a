package tpm

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

const (
	// maxIndex bounds what is read of one NV index: endorsement certificates have 800 to
	// 2,000 bytes, and some makers pad them.
	maxIndex = 8 << 10
	// nvChunk is read at once: the least that every TPM allows (TPM_PT_NV_BUFFER_MAX).
	nvChunk = 512
)

// errIndex marks what is wrong with an index, where the TPM itself works.
var errIndex = errors.New("unusable NV index")

// readIndex reads a whole NV index (Part 3, 31.6 and 31.13).
func readIndex(c *call, index tpm2.TPMHandle) ([]byte, error) {
	rsp, err := tpm2.NVReadPublic{NVIndex: index}.Execute(c)
	if err != nil {
		return nil, err
	}
	pub, err := rsp.NVPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("%w: its public area is malformed", errIndex)
	}
	auth, err := reader(pub, index)
	if err != nil {
		return nil, err
	}
	name, err := tpm2.NVName(pub)
	if err != nil {
		return nil, fmt.Errorf("%w: name algorithm %#x", errIndex, uint16(pub.NameAlg))
	}
	if auth.Handle == tpm2.TPMIDHObject(index) {
		auth.Name = *name
	}
	data := make([]byte, 0, pub.DataSize)
	for len(data) < int(pub.DataSize) {
		size := min(nvChunk, int(pub.DataSize)-len(data))
		part, err := tpm2.NVRead{
			AuthHandle: auth,
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: *name},
			Size:       uint16(size),
			Offset:     uint16(len(data)),
		}.Execute(c)
		if err != nil {
			return nil, err
		}
		if len(part.Data.Buffer) != size {
			return nil, fmt.Errorf("%w: %d bytes where %d were asked for", errIndex, len(part.Data.Buffer), size)
		}
		data = append(data, part.Data.Buffer...)
	}
	return data, nil
}

// reader says by whose authority an index may be read: its own where that is exempt from
// dictionary-attack protection, else the owner's. Its own without noDA is the last resort:
// a power cut while it is in use counts towards lockout.
func reader(pub *tpm2.TPMSNVPublic, index tpm2.TPMHandle) (tpm2.AuthHandle, error) {
	a := pub.Attributes
	switch {
	case pub.NVIndex != index:
		return tpm2.AuthHandle{}, fmt.Errorf("%w: it says that it is %#x", errIndex, uint32(pub.NVIndex))
	case a.NT != tpm2.TPMNTOrdinary:
		return tpm2.AuthHandle{}, fmt.Errorf("%w: of type %d, no ordinary one", errIndex, a.NT)
	case pub.DataSize > maxIndex:
		return tpm2.AuthHandle{}, fmt.Errorf("%w: %d bytes are more than %d", errIndex, pub.DataSize, maxIndex)
	case !a.Written:
		return tpm2.AuthHandle{}, fmt.Errorf("%w: nothing was written to it", errIndex)
	case a.AuthRead && a.NoDA, a.AuthRead && !a.OwnerRead:
		return tpm2.AuthHandle{Handle: index, Auth: tpm2.PasswordAuth(nil)}, nil
	case a.OwnerRead:
		return tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, nil
	}
	return tpm2.AuthHandle{}, fmt.Errorf("%w: neither its own nor the owner's authority may read it", errIndex)
}
