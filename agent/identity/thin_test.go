//go:build !race && !arm && !arm64

package identity_test

// every says at each so many-th TPM command the power is cut.
const every = 1
