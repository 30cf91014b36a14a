//go:build !race && !arm && !arm64

package outbox_test

// thin says that every so many-th power cut is looked at.
const thin = 1
