package firmware

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"io"
	"log/slog"
	"path/filepath"
	"slices"

	"ferrule/firmware/manifest"
	"ferrule/firmware/slot"
	"ferrule/internal/atomicfile"
	"ferrule/internal/disk"
)

// hashed is the hash of the first bytes of a part of the slot that runs. It may be wrong: a file
// system that was mounted for writing has changed. Then a delta does not apply, or does not make
// what it should, which every segment's hash tells.
type hashed struct {
	Slot   slot.Slot `json:"slot"`
	In     string    `json:"in"` // edition, or version, in that slot
	Part   string    `json:"part"`
	Size   int64     `json:"size"`
	SHA256 string    `json:"sha256"`
}

// hashesMax bounds what is kept.
const hashesMax = 64

func (e *Engine) hashesName() string { return filepath.Join(e.o.Dir, "hashes.json") }

func (e *Engine) forgetHashes() {
	if err := e.o.FS.Remove(e.hashesName()); err != nil {
		e.log.Debug("forgetting hashes", slog.Any("err", err))
	}
}

// hashes returns the hash of the first bytes of the running part, for each length that a delta is
// made for: kept ones, or else in one pass over the part.
func (e *Engine) hashes(ctx context.Context, old io.ReaderAt, part manifest.Part) map[int64]manifest.Digest {
	var kept []hashed
	if data, err := disk.ReadFile(e.o.FS, e.hashesName(), 64<<10); err == nil {
		_ = json.Unmarshal(data, &kept) // what cannot be read is made again
	}
	in := e.runs()
	key := hashed{Slot: e.env.Running, In: in.Edition + "/" + in.Version, Part: part.Name}
	sums := make(map[int64]manifest.Digest)
	var sizes []int64
	for _, d := range part.Deltas {
		i := slices.IndexFunc(kept, func(h hashed) bool {
			return h.Slot == key.Slot && h.In == key.In && h.Part == key.Part && h.Size == d.FromSize
		})
		if i >= 0 {
			if sum, err := manifest.ParseDigest(kept[i].SHA256); err == nil {
				sums[d.FromSize] = sum
				continue
			}
		}
		sizes = append(sizes, d.FromSize)
	}
	slices.Sort(sizes)
	made := prefixes(ctx, old, slices.Compact(sizes))
	for size, sum := range made {
		sums[size] = sum
		key.Size, key.SHA256 = size, sum.String()
		kept = append(kept, key)
	}
	if len(made) > 0 {
		e.keepHashes(kept)
	}
	return sums
}

// prefixes hashes the first bytes of r, for each of the sizes, which rise, as far as r goes.
func prefixes(ctx context.Context, r io.ReaderAt, sizes []int64) map[int64]manifest.Digest {
	sums := make(map[int64]manifest.Digest)
	h := sha256.New()
	buf := make([]byte, 256<<10)
	var at int64
	for _, size := range sizes {
		for at < size {
			b := buf[:min(int64(len(buf)), size-at)]
			if _, err := readFull(r, b, at); err != nil || ctx.Err() != nil {
				return sums
			}
			h.Write(b)
			at += int64(len(b))
		}
		sums[size] = manifest.Digest(h.Sum(nil))
	}
	return sums
}

func (e *Engine) keepHashes(kept []hashed) {
	kept = kept[max(0, len(kept)-hashesMax):]
	data, err := json.Marshal(kept)
	if err == nil {
		err = atomicfile.Write(e.o.FS, e.hashesName(), data, 0o600)
	}
	if err != nil {
		e.log.Warn("keeping hashes of the slot that runs", slog.Any("err", err))
	}
}
