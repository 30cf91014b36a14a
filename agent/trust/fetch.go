package trust

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// ErrNotModified says that the list is still the one that has this tag.
var ErrNotModified = errors.New("not modified")

// Fetch gets a list. tag is what came with the last one that was believed, or ""; with the
// same, it returns ErrNotModified. It is bounded by ctx.
type Fetch func(ctx context.Context, url, tag string) (text []byte, newTag string, err error)

// HTTP returns a Fetch for http:// and https:// URLs; roots judges the latter (nil, or a
// function that returns nil: the operating system's). Lists are signed, so http:// is as good:
// who is in between can withhold one, and no more.
func HTTP(roots func() *x509.CertPool) Fetch {
	return func(ctx context.Context, url, tag string) ([]byte, string, error) {
		transport := &http.Transport{
			Proxy:             http.ProxyFromEnvironment,
			DisableKeepAlives: true, // hours pass until the next one
			TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS12},
		}
		if roots != nil {
			transport.TLSClientConfig.RootCAs = roots()
		}
		defer transport.CloseIdleConnections()
		client := &http.Client{Transport: transport, CheckRedirect: func(_ *http.Request, via []*http.Request) error {
			if len(via) > 3 {
				return errors.New("more than three redirects")
			}
			return nil
		}}
		return get(ctx, client, url, tag)
	}
}

func get(ctx context.Context, client *http.Client, url, tag string) (text []byte, newTag string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, "", err
	}
	if tag != "" && tag[0] == '"' {
		request.Header.Set("If-None-Match", tag)
	} else if tag != "" {
		request.Header.Set("If-Modified-Since", tag)
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	switch {
	case response.StatusCode == http.StatusNotModified && tag != "":
		return nil, "", ErrNotModified
	case response.StatusCode != http.StatusOK:
		return nil, "", fmt.Errorf("the server answers %d", response.StatusCode)
	}
	text, err = io.ReadAll(io.LimitReader(response.Body, maxList+1))
	if err != nil {
		return nil, "", err
	}
	return text, tagOf(response.Header), nil
}

// tagOf takes a strong ETag, or the date of the last change, of a bounded length.
func tagOf(h http.Header) string {
	if tag := h.Get("ETag"); len(tag) > 1 && len(tag) < 200 && tag[0] == '"' {
		return tag
	}
	if date := h.Get("Last-Modified"); date != "" {
		if _, err := time.Parse(http.TimeFormat, date); err == nil {
			return date
		}
	}
	return ""
}

// issuerName writes a name as certificates are described.
func issuerName(raw []byte) string {
	var rdn pkix.RDNSequence
	if rest, err := asn1.Unmarshal(raw, &rdn); err != nil || len(rest) != 0 {
		return ""
	}
	var name pkix.Name
	name.FillFromRDNSequence(&rdn)
	return name.String()
}
