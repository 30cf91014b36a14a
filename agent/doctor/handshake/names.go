package handshake

import (
	"crypto/tls"
	"fmt"
	"strings"
	"unicode"
)

// alertName names an alert (RFC 8446, 6; RFC 5246, 7.2; RFC 7301).
func alertName(code uint8) string {
	names := map[uint8]string{
		0: "close_notify", 10: "unexpected_message", 20: "bad_record_mac", 22: "record_overflow", 40: "handshake_failure", 41: "no_certificate",
		42: "bad_certificate", 43: "unsupported_certificate", 44: "certificate_revoked", 45: "certificate_expired", 46: "certificate_unknown",
		47: "illegal_parameter", 48: "unknown_ca", 49: "access_denied", 50: "decode_error", 51: "decrypt_error", 70: "protocol_version",
		71: "insufficient_security", 80: "internal_error", 86: "inappropriate_fallback", 90: "user_canceled", 100: "no_renegotiation",
		109: "missing_extension", 110: "unsupported_extension", 112: "unrecognized_name", 113: "bad_certificate_status_response",
		115: "unknown_psk_identity", 116: "certificate_required", 120: "no_application_protocol",
	}
	if name, ok := names[code]; ok {
		return name
	}
	return fmt.Sprintf("alert %d", code)
}

// The types of handshake messages (RFC 8446, 4; RFC 5246, 7.4).
const (
	typeHelloRequest        = 0
	typeClientHello         = 1
	typeServerHello         = 2
	typeNewSessionTicket    = 4
	typeEncryptedExtensions = 8
	typeCertificate         = 11
	typeServerKeyExchange   = 12
	typeCertificateRequest  = 13
	typeServerHelloDone     = 14
	typeCertificateVerify   = 15
	typeClientKeyExchange   = 16
	typeFinished            = 20
	typeCertificateStatus   = 22
	typeKeyUpdate           = 24
)

func messageName(kind byte) string {
	names := map[byte]string{
		typeHelloRequest: "HelloRequest", typeClientHello: "ClientHello", typeServerHello: "ServerHello",
		typeNewSessionTicket: "NewSessionTicket", typeEncryptedExtensions: "EncryptedExtensions", typeCertificate: "Certificate",
		typeServerKeyExchange: "ServerKeyExchange", typeCertificateRequest: "CertificateRequest", typeServerHelloDone: "ServerHelloDone",
		typeCertificateVerify: "CertificateVerify", typeClientKeyExchange: "ClientKeyExchange", typeFinished: "Finished",
		typeCertificateStatus: "CertificateStatus", typeKeyUpdate: "KeyUpdate",
	}
	if name, ok := names[kind]; ok {
		return name
	}
	return fmt.Sprintf("message %d", kind)
}

// The extensions that are read (IANA, TLS ExtensionType Values).
const (
	extServerName         = 0
	extStatusRequest      = 5
	extGroups             = 10
	extSchemes            = 13
	extALPN               = 16
	extSessionTicket      = 35
	extPreSharedKey       = 41
	extVersions           = 43
	extAuthorities        = 47
	extKeyShare           = 51
	extRenegotiation      = 0xff01
	extEncryptedHello     = 0xfe0d
	statusTypeOCSP        = 1
	nameTypeHost          = 0
	certificateTypeOfOCSP = statusTypeOCSP
)

func extensionName(id uint16) string {
	names := map[uint16]string{
		extServerName: "server_name", extStatusRequest: "status_request", extGroups: "supported_groups", 11: "ec_point_formats",
		extSchemes: "signature_algorithms", extALPN: "alpn", 18: "sct", 22: "encrypt_then_mac", 23: "extended_master_secret",
		28: "record_size_limit", extSessionTicket: "session_ticket", extPreSharedKey: "pre_shared_key", 42: "early_data",
		extVersions: "supported_versions", 44: "cookie", 45: "psk_key_exchange_modes", extAuthorities: "certificate_authorities",
		48: "oid_filters", 50: "signature_algorithms_cert", extKeyShare: "key_share", extRenegotiation: "renegotiation_info",
		extEncryptedHello: "encrypted_client_hello",
	}
	if name, ok := names[id]; ok {
		return name
	}
	return fmt.Sprintf("%#04x", id)
}

// isGrease says whether a value was sent only to keep the other side tolerant (RFC 8701).
func isGrease(v uint16) bool { return v&0x0f0f == 0x0a0a && v>>8 == v&0xff }

// named names each number but for GREASE.
func named(list []uint16, name func(uint16) string) []string {
	names := make([]string, 0, len(list))
	for _, v := range list {
		if !isGrease(v) {
			names = append(names, name(v))
		}
	}
	return names
}

func versionName(v uint16) string { return tls.VersionName(v) }
func suiteName(v uint16) string {
	switch v {
	case 0x00ff:
		return "TLS_EMPTY_RENEGOTIATION_INFO_SCSV"
	case 0x5600:
		return "TLS_FALLBACK_SCSV"
	}
	return tls.CipherSuiteName(v)
}
func schemeName(v uint16) string { return tls.SignatureScheme(v).String() }

func groupName(v uint16) string {
	switch v {
	case uint16(tls.CurveP256):
		return "P-256"
	case uint16(tls.CurveP384):
		return "P-384"
	case uint16(tls.CurveP521):
		return "P-521"
	case 30:
		return "X448"
	}
	if v >= 256 && v <= 260 {
		return fmt.Sprintf("ffdhe%d", []int{2048, 3072, 4096, 6144, 8192}[v-256])
	}
	return tls.CurveID(v).String()
}

// maxText bounds what is shown of one foreign text, in bytes.
const maxText = 256

// printable makes foreign text fit for a terminal.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return s
}

// glimpse shows the beginning of what is not TLS.
func glimpse(b []byte) string {
	b = b[:min(len(b), 48)]
	for _, c := range b {
		if (c < ' ' || c > '~') && c != '\r' && c != '\n' {
			return fmt.Sprintf("% x", b[:min(len(b), 16)])
		}
	}
	return fmt.Sprintf("%q", b)
}
