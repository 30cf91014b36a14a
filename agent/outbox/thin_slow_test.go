//go:build race || arm || arm64

package outbox_test

// thin says that every so many-th power cut is looked at: the replay is one goroutine, in which the race
// detector finds nothing, and it would take minutes under an emulator.
const thin = 5
