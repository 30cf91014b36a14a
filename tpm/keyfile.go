package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// pemType heads a TSS2 key file (draft-woodhouse-cert-best-practice, appendix; openssl's tpm2
// provider, tpm2-tools and tpm2-tss-engine write the same).
const pemType = "TSS2 PRIVATE KEY"

// maxKeyFile bounds a key file; real ones have 400 to 1,500 bytes.
const maxKeyFile = 64 << 10

var (
	oidLoadable   = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 3}
	oidImportable = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 4}
	oidSealed     = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 5}
)

// A KeyFile is a key that only the TPM which made it can use: the public area, and the
// private area wrapped by its parent. It is no secret.
type KeyFile struct {
	parent  uint32
	noAuth  bool // the file says that the key has no password; see Key.tryWithoutPassword
	public  *tpm2.TPMTPublic
	pub     []byte // TPMT_PUBLIC
	private []byte // TPM2B_PRIVATE without its size
}

// ParseKeyFile reads the first TSS2 PEM block of data. A damaged file is ErrKeyCorrupt; one
// that holds something else than a loadable key without policy, under SRKHandle or
// OwnerHandle, is ErrUnsupported.
func ParseKeyFile(data []byte) (*KeyFile, error) {
	block, _ := pem.Decode(data)
	switch {
	case block == nil:
		return nil, corrupt("no PEM block in it")
	case block.Type == pemType:
		return parseDER(block.Bytes)
	case block.Type == "PRIVATE KEY", block.Type == "EC PRIVATE KEY", block.Type == "RSA PRIVATE KEY":
		return nil, unsupported("the file holds a software key, not one of a TPM (PEM type %q)", block.Type)
	}
	return nil, unsupported("PEM type %q is not %q", block.Type, pemType)
}

// parseDER reads, with the optional fields told apart by their tags:
//
//	TPMKey ::= SEQUENCE {
//	  type        OBJECT IDENTIFIER,
//	  emptyAuth   [0] EXPLICIT BOOLEAN OPTIONAL,
//	  policy      [1] EXPLICIT SEQUENCE OF TPMPolicy OPTIONAL,
//	  secret      [2] EXPLICIT OCTET STRING OPTIONAL,
//	  authPolicy  [3] EXPLICIT SEQUENCE OF TPMAuthPolicy OPTIONAL,
//	  description [4] EXPLICIT UTF8String OPTIONAL,
//	  rsaParent   [5] EXPLICIT BOOLEAN OPTIONAL,
//	  parent      INTEGER,
//	  pubkey      OCTET STRING,   -- TPM2B_PUBLIC
//	  privkey     OCTET STRING }  -- TPM2B_PRIVATE
func parseDER(der []byte) (*KeyFile, error) {
	var outer asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &outer); err != nil || len(rest) != 0 ||
		outer.Class != asn1.ClassUniversal || outer.Tag != asn1.TagSequence {
		return nil, corrupt("it is not one ASN.1 SEQUENCE")
	}
	var kind asn1.ObjectIdentifier
	rest, err := asn1.Unmarshal(outer.Bytes, &kind)
	if err != nil {
		return nil, corrupt("its type is not an OBJECT IDENTIFIER")
	}
	if err := checkKind(kind); err != nil {
		return nil, err
	}
	options, rest, err := parseOptions(rest)
	if err != nil {
		return nil, err
	}
	var parent *big.Int
	var pub, private []byte
	for _, field := range []any{&parent, &pub, &private} {
		if rest, err = asn1.Unmarshal(rest, field); err != nil {
			return nil, corrupt("parent, public or private area is malformed")
		}
	}
	if len(rest) != 0 {
		return nil, corrupt("%d bytes follow the private area", len(rest))
	}
	if err := options.check(parent); err != nil {
		return nil, err
	}
	f, err := newKeyFile(uint32(parent.Uint64()), pub, private)
	if err != nil {
		return nil, err
	}
	f.noAuth = options.emptyAuth
	return f, nil
}

func checkKind(kind asn1.ObjectIdentifier) error {
	switch {
	case kind.Equal(oidLoadable):
		return nil
	case kind.Equal(oidImportable):
		return unsupported("an importable key was made outside the TPM; create one inside")
	case kind.Equal(oidSealed):
		return unsupported("the file holds sealed data, not a key")
	}
	return unsupported("key type %s is unknown", kind)
}

// fileOptions are the optional fields that decide whether we can use the key.
type fileOptions struct{ emptyAuth, rsaParent bool }

func parseOptions(rest []byte) (fileOptions, []byte, error) {
	var o fileOptions
	for last := -1; ; {
		var field asn1.RawValue
		after, err := asn1.Unmarshal(rest, &field)
		if err != nil || field.Class != asn1.ClassContextSpecific {
			return o, rest, nil // the caller finds the error, if it is one
		}
		if field.Tag <= last || field.Tag > 5 {
			return o, nil, corrupt("optional field [%d] is out of place", field.Tag)
		}
		last = field.Tag
		switch field.Tag {
		case 0:
			o.emptyAuth, err = parseBoolean(field.Bytes)
		case 1, 3:
			err = unsupported("the key is bound to a policy; create it without")
		case 2:
			err = unsupported("the key carries an import secret")
		case 5:
			o.rsaParent, err = parseBoolean(field.Bytes)
		}
		if err != nil {
			return o, nil, err
		}
		rest = after
	}
}

// parseBoolean takes any non-zero octet for TRUE, as BER allows: openssl's provider writes
// 0x01 where DER, and with it encoding/asn1, demands 0xFF.
func parseBoolean(b []byte) (bool, error) {
	if len(b) != 3 || b[0] != asn1.TagBoolean || b[1] != 1 {
		return false, corrupt("an optional field is not a BOOLEAN")
	}
	return b[2] != 0, nil
}

// check leaves emptyAuth alone: tpm2_encodeobject 5.4 writes it the wrong way round.
func (o fileOptions) check(parent *big.Int) error {
	switch {
	case !parent.IsUint64() || parent.Uint64() != uint64(SRKHandle) && parent.Uint64() != uint64(OwnerHandle):
		return unsupported("parent %#x is neither %#x nor %#x", parent, SRKHandle, OwnerHandle)
	case o.rsaParent && parent.Uint64() == uint64(OwnerHandle):
		return unsupported("the key hangs below a derived RSA primary key; only ECC is derived here")
	}
	return nil
}

// newKeyFile checks the two TPM structures; pub and private begin with their sizes.
func newKeyFile(parent uint32, pub, private []byte) (*KeyFile, error) {
	pub, okPub := sized(pub)
	private, okPrivate := sized(private)
	if !okPub || !okPrivate {
		return nil, corrupt("the size of its public or private area is wrong")
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](pub)
	if err != nil {
		return nil, corrupt("its public area is malformed")
	}
	f := &KeyFile{parent: parent, noAuth: true, public: public, pub: pub, private: private}
	if _, err := f.Public(); err != nil {
		return nil, err
	}
	if !bytes.Equal(tpm2.Marshal(public), pub) {
		return nil, corrupt("its public area is not in its one form")
	}
	return f, nil
}

// sized strips the two-byte size of a TPM2B structure and reports whether it was right.
func sized(b []byte) ([]byte, bool) {
	if len(b) < 3 || int(binary.BigEndian.Uint16(b)) != len(b)-2 {
		return nil, false
	}
	return bytes.Clone(b[2:]), true
}

// Parent is SRKHandle or OwnerHandle.
func (f *KeyFile) Parent() uint32 { return f.parent }

// Public returns the public key: *ecdsa.PublicKey (P-256, P-384) or *rsa.PublicKey.
func (f *KeyFile) Public() (crypto.PublicKey, error) { return publicKey(f.public) }

func publicKey(public *tpm2.TPMTPublic) (crypto.PublicKey, error) {
	key, err := tpm2.Pub(*public)
	if err != nil {
		return nil, unsupported("a key of this kind: %s", err)
	}
	if ec, ok := key.(*ecdsa.PublicKey); ok {
		if _, err := ec.ECDH(); err != nil {
			return nil, corrupt("its public point is not on the curve")
		}
	}
	return key, nil
}

// MarshalPEM returns the file's bytes, in DER within PEM, as every other reader of TSS2
// key files takes them.
func (f *KeyFile) MarshalPEM() []byte {
	der, err := asn1.Marshal(struct {
		Type      asn1.ObjectIdentifier
		EmptyAuth bool `asn1:"explicit,tag:0"`
		Parent    int64
		Public    []byte
		Private   []byte
	}{oidLoadable, f.noAuth, int64(f.parent), prefixed(f.pub), prefixed(f.private)})
	if err != nil {
		return nil // cannot happen: the types above are all encoding/asn1 knows
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der})
}

func prefixed(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}
