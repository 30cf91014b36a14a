package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"

	"ferrule/internal/hint"
)

// ErrNotRunning says that no agent answers on the socket.
var ErrNotRunning = errors.New("no agent is running")

// maxAnswer bounds what a client reads of one answer.
const maxAnswer = 4 << 20

// Error is what a refused command answers.
type Error struct {
	Text string `json:"error"`
	Code string `json:"code"`
	Hint string `json:"hint,omitempty"`
}

func (e *Error) Error() string { return e.Text }

// Client asks the running agent.
type Client struct {
	socket string
	http   *http.Client
}

// Dial returns a client of the agent behind socket. Nothing is opened before the first call.
func Dial(socket string) *Client {
	var dialer net.Dialer
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}}
}

// Status returns the agent's status as JSON.
func (c *Client) Status(ctx context.Context) (json.RawMessage, error) {
	return c.do(ctx, http.MethodGet, "/status", nil)
}

// Command has the agent execute one command and returns its result. Its error is
// ErrNotRunning or an *Error with the agent's own words and code.
func (c *Client) Command(ctx context.Context, name string, args any) (json.RawMessage, error) {
	body, err := json.Marshal(args)
	if err != nil {
		return nil, fmt.Errorf("encoding the arguments of %s: %w", name, err)
	}
	return c.do(ctx, http.MethodPost, "/command/"+name, body)
}

func (c *Client) do(ctx context.Context, method, path string, body []byte) (json.RawMessage, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("asking the agent: %w", err)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, c.explain(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("reading the agent's answer: %w", err)
	}
	if response.StatusCode == http.StatusOK {
		return answer, nil
	}
	failure := &Error{}
	if json.Unmarshal(answer, failure) != nil || failure.Text == "" {
		return nil, fmt.Errorf("asking the agent: %s", response.Status)
	}
	return nil, hint.With(failure, failure.Hint)
}

func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return hint.With(fmt.Errorf("%w (nobody answers on %s)", ErrNotRunning, c.socket),
			"start it with: ferrule run")
	case errors.Is(err, fs.ErrPermission):
		return hint.With(fmt.Errorf("opening %s: %w", c.socket, fs.ErrPermission),
			"run as root or as a member of the agent's group")
	}
	return fmt.Errorf("asking the agent: %w", err)
}
