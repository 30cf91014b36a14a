package bundle

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"ferrule/firmware/bundle/delta"
	"ferrule/firmware/manifest"
	"ferrule/firmware/patch"
	"ferrule/internal/disk"
)

// image is an image that lies in a file.
type image struct {
	disk.File
	size int64
}

func openImage(fsys disk.FS, name string) (*image, error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the image: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("opening the image: %s is no file", name)
	}
	if err == nil && (info.Size() < 1 || info.Size() > manifest.MaxPart) {
		err = fmt.Errorf("opening the image: %s has %d bytes, and 1 to %d are allowed", name, info.Size(), int64(manifest.MaxPart))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &image{f, info.Size()}, nil
}

// object makes the object of an image, of old or of nothing, puts it where a target of that name
// lies on the server, and says what it has made.
func (r *Repository) object(ctx context.Context, what, target string, new *image, old *delta.Old) (manifest.Object, delta.Stats, error) {
	o := delta.Options{Quick: r.o.Quick, Progress: func(done, all int64) { r.o.Progress(what, done, all) }}
	if r.o.FS == disk.OS() {
		o.Dir = r.path(tempDir) // the machine's own folder may be in memory, and an object is large
	}
	var stats delta.Stats
	if err := r.folderOf(tempDir + "/x"); err != nil {
		return manifest.Object{}, stats, err
	}
	temp, err := r.temp(func(w io.Writer) (err error) {
		stats, err = delta.Encode(ctx, w, new, new.size, old, o)
		return err
	})
	if err != nil {
		return manifest.Object{}, stats, fmt.Errorf("making the object of %s: %w", what, err)
	}
	made := manifest.Object{Path: manifest.ServerPath(target, stats.SHA256), Size: stats.Size, SHA256: stats.SHA256}
	name := targetsDir + "/" + made.Path
	if err := r.folderOf(name); err != nil {
		return manifest.Object{}, stats, err
	}
	if err := r.o.FS.Rename(temp, r.path(name)); err != nil {
		return manifest.Object{}, stats, fmt.Errorf("naming the object of %s: %w", what, err)
	}
	return made, stats, r.o.FS.SyncDir(filepath.Dir(r.path(name)))
}

// temp writes a file that has no name of its own yet, durably. The caller renames or removes it.
func (r *Repository) temp(write func(io.Writer) error) (name string, err error) {
	f, name, err := r.createTemp()
	if err != nil {
		return "", err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	if err = write(w); err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	if closing := f.Close(); err == nil {
		err = closing
	}
	if err != nil {
		_ = r.o.FS.Remove(name) // what is left over goes with the next run
	}
	return name, err
}

func (r *Repository) createTemp() (disk.File, string, error) {
	if err := r.folderOf(tempDir + "/x"); err != nil {
		return nil, "", err
	}
	for i := 0; ; i++ {
		name := r.path(path.Join(tempDir, strconv.Itoa(i)))
		f, err := r.o.FS.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
		if !errors.Is(err, os.ErrExist) {
			return f, name, err
		}
	}
}

// sweep removes what runs that were cut have left over.
func (r *Repository) sweep() error {
	names, err := r.list(tempDir)
	for _, name := range names {
		err = errors.Join(err, r.remove(name))
	}
	return err
}

// open opens an object where it lies, once it has the size that is said of it.
func (r *Repository) open(o manifest.Object) (disk.File, error) {
	f, err := r.o.FS.OpenFile(r.path(targetsDir+"/"+o.Path), os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || info.Size() != o.Size {
		f.Close()
		return nil, errors.Join(err, fmt.Errorf("%s has not the %d bytes that its manifest says", o.Path, o.Size))
	}
	return f, nil
}

// check says whether an object is what its manifest says.
func (r *Repository) check(ctx context.Context, o manifest.Object) error {
	f, err := r.open(o)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, &reader{ctx, f}); err != nil {
		return fmt.Errorf("reading %s: %w", o.Path, err)
	}
	if manifest.Digest(h.Sum(nil)) != o.SHA256 {
		return fmt.Errorf("%s is not what its name says", o.Path)
	}
	return nil
}

// reader ends when its context does.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r *reader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(b)
}

// decode makes a part out of an object as a device does, segment by segment, and checks the whole.
func decode(ctx context.Context, object io.Reader, want patch.Want, old io.ReaderAt, w io.Writer) error {
	in := bufio.NewReaderSize(&reader{ctx, object}, 1<<20)
	plan, err := patch.ReadHeader(in, want)
	if err != nil {
		return err
	}
	h := sha256.New()
	body, segment := make([]byte, patch.BodyLimit), make([]byte, patch.BodyLimit+patch.MapLimit)
	for k := range plan.Segments() {
		if _, err := io.ReadFull(in, body[:plan.Body(k)]); err != nil {
			return fmt.Errorf("reading segment %d: %w", k, err)
		}
		out, err := plan.Segment(k, body[:plan.Body(k)], old, segment)
		if err != nil {
			return err
		}
		h.Write(out)
		if _, err := w.Write(out); err != nil {
			return fmt.Errorf("writing segment %d: %w", k, err)
		}
	}
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		return errors.Join(err, errors.New("something follows the last segment"))
	}
	if manifest.Digest(h.Sum(nil)) != want.SHA256 {
		return errors.New("the segments are right, and the whole is not")
	}
	return nil
}

// unpack makes a part out of its full object, in a temporary file that the caller removes.
func (r *Repository) unpack(ctx context.Context, p *manifest.Part) (string, error) {
	f, err := r.open(p.Full)
	if err != nil {
		return "", err
	}
	defer f.Close()
	name, err := r.temp(func(w io.Writer) error { return decode(ctx, f, patch.OfFull(p), nil, w) })
	if err != nil {
		return "", fmt.Errorf("unpacking %s: %w", p.Full.Path, err)
	}
	return name, nil
}
