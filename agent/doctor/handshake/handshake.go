// Package handshake reads a TLS handshake back from the bytes that were recorded of it, message by
// message. The trap is the secrets that TLS 1.3 needs for that: they stay in memory, in a KeyLog that
// can be printed by nobody.
package handshake
