//go:build race || arm || arm64

package identity_test

// every says at each so many-th TPM command the power is cut: each takes a whole enrollment, and
// under an emulator or the race detector that is minutes.
const every = 7
