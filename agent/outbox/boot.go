package outbox

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strconv"
	"time"

	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
	"ferrule/internal/record"
)

const (
	bootName = "boot"
	// A number that cannot be stored is random in [randomFrom, randomTo): beyond any counter that began
	// at a Unix time, and exact in a consumer's float64.
	randomFrom, randomTo = 1 << 40, 1 << 53
)

var bootSeed = record.NewSeed(5)

// earliest is when no gateway had this program: a clock before it was never set.
var earliest = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// nextBoot returns a number no start had before, and the error that kept it from being stored. highest
// is the highest number seen in the logs.
func (c *common) nextBoot(highest uint64) (uint64, error) {
	boot := randomBoot() // where a counter was damaged, too: it may have begun in this second
	switch last, err := c.lastBoot(); {
	case err == nil:
		boot = last + 1
	case errors.Is(err, fs.ErrNotExist) && !time.Now().Before(earliest):
		boot = max(uint64(time.Now().Unix()), highest+1)
	}
	data := bootSeed.Append(nil, strconv.AppendUint(nil, boot, 10))
	if err := atomicfile.Write(c.fsys, c.normal.path(bootName), data, 0o600); err != nil {
		return randomBoot(), fmt.Errorf("storing the boot counter: %w", err)
	}
	c.normal.stats.WrittenBytes += int64(len(data))
	c.normal.stats.Fsyncs++
	return boot, nil
}

func randomBoot() uint64 { return randomFrom + rand.Uint64N(randomTo-randomFrom) }

// lastBoot reads the stored number.
func (c *common) lastBoot() (uint64, error) {
	const digits = 20
	data, err := disk.ReadFile(c.fsys, c.normal.path(bootName), record.HeaderSize+digits)
	if err != nil {
		return 0, err
	}
	rec, err := record.NewReader(bytes.NewReader(data), 0, int64(len(data)), bootSeed, digits).Next()
	if err != nil || rec.Damaged != 0 {
		return 0, errFormat
	}
	boot, err := strconv.ParseUint(string(rec.Payload), 10, 64)
	if err != nil || boot >= randomTo-1 {
		return 0, errFormat
	}
	return boot, nil
}
