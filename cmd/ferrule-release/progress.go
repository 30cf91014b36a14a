package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progress shows how far long work is: a bar where somebody watches, else a line for every tenth
// of what is large.
type progress struct {
	w     io.Writer
	watch bool
	what  string
	bar   *progressbar.ProgressBar
	tenth int64
}

// worthALine is how many bytes take long enough to be told of in a log.
const worthALine = 64 << 20

func newProgress(w io.Writer) *progress {
	f, ok := w.(*os.File)
	return &progress{w: w, watch: ok && term.IsTerminal(int(f.Fd()))}
}

// show is told how many bytes are done of what.
func (p *progress) show(what string, done, all int64) {
	if all <= 0 {
		return
	}
	if what != p.what {
		p.what, p.tenth, p.bar = what, 0, nil
	}
	if p.watch {
		if p.bar == nil {
			p.bar = progressbar.NewOptions64(all, progressbar.OptionSetWriter(p.w), progressbar.OptionShowBytes(true),
				progressbar.OptionSetDescription(what), progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
		}
		_ = p.bar.Set64(done) // a bar that cannot be drawn is no reason to stop
		return
	}
	if tenth := done * 10 / all; all >= worthALine && tenth > p.tenth {
		p.tenth = tenth
		fmt.Fprintf(p.w, "ferrule-release: %s: %d %%\n", what, tenth*10)
	}
}
