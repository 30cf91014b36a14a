package bundle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"

	"ferrule/firmware/manifest"
	"ferrule/firmware/tuf"
)

// asGoTUF is a client that is not ours. It must see the same targets.
func (v *verifier) asGoTUF(ctx context.Context) error {
	const base = "https://repository.invalid/metadata"
	c, err := config.New(base, v.Root)
	if err != nil {
		return err
	}
	c.DisableLocalCache = true
	c.TargetsMaxLength, c.SnapshotMaxLength, c.RootMaxLength = tuf.TargetsLimit, tuf.SnapshotLimit, tuf.RootLimit
	c.Fetcher = &siteFetcher{ctx, v.site, base + "/"}
	u, err := updater.New(c)
	if err == nil {
		u.UnsafeSetRefTime(v.now)
		err = u.Refresh()
	}
	if err != nil {
		v.problem("go-tuf refuses it: %v", err)
		return ctx.Err()
	}
	root := u.GetTrustedMetadataSet().Root
	for i := range v.report.Roles {
		if named := root.Signed.Roles[v.report.Roles[i].Role]; named != nil {
			v.report.Roles[i].Keys, v.report.Roles[i].Threshold = len(named.KeyIDs), named.Threshold
		}
	}
	theirs := u.GetTopLevelTargets()
	for name, t := range theirs {
		o := manifest.Object{Size: t.Length, SHA256: manifest.Digest(t.Hashes["sha256"])}
		o.Path = manifest.ServerPath(name, o.SHA256)
		if v.files[o.Path] != o {
			v.problem("go-tuf sees target %q, and a device does not", name)
		}
	}
	if len(theirs) != len(v.files) {
		v.problem("go-tuf sees %d targets, and a device %d", len(theirs), len(v.files))
	}
	return nil
}

// siteFetcher has go-tuf read a Site.
type siteFetcher struct {
	ctx  context.Context
	site Site
	base string
}

// DownloadFile implements go-tuf's fetcher.Fetcher.
func (f *siteFetcher) DownloadFile(url string, limit int64, _ time.Duration) ([]byte, error) {
	name, ok := strings.CutPrefix(url, f.base)
	if !ok {
		return nil, fmt.Errorf("reading %s: it is no metadata", url)
	}
	data, err := f.site.Metadata(f.ctx, name, limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &metadata.ErrDownloadHTTP{StatusCode: http.StatusNotFound, URL: url}
	}
	if err == nil && int64(len(data)) > limit {
		return nil, &metadata.ErrDownloadLengthMismatch{Msg: name + " is too long"}
	}
	return data, err
}
