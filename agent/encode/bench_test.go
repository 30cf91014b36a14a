package encode_test

import (
	"fmt"
	"testing"

	"ferrule/agent/encode"
)

// BenchmarkEntry is what a poll costs on its line's goroutine.
func BenchmarkEntry(b *testing.B) {
	poll := meterPolls(1)[0]
	for _, format := range formats {
		b.Run(format, func(b *testing.B) {
			e, dst := encoder(b, format), make([]byte, 0, 4096)
			b.ReportAllocs()
			for b.Loop() {
				_, dst = e.Entry(dst[:0], 1, poll, false)
			}
			b.ReportMetric(float64(len(dst)), "stored-bytes")
		})
	}
}

// BenchmarkJoin is what a poll of a ten-register meter costs on the session's goroutine, and the bytes
// of payload that it takes: alone, and among 60.
func BenchmarkJoin(b *testing.B) {
	for _, format := range formats {
		for _, compress := range []string{"none", "zstd"} {
			for _, batch := range []int{1, 60} {
				if format == encode.SparkplugB && compress == "zstd" {
					continue
				}
				b.Run(fmt.Sprintf("%s/%s/%d", format, compress, batch), func(b *testing.B) {
					e := encoder(b, format, largest(256<<10), func(c *encode.Config) { c.Compress = compress })
					var topic string
					var entries [][]byte
					for i, p := range meterPolls(batch) {
						var entry []byte
						topic, entry = e.Entry(nil, uint64(48213+i), p, false)
						entries = append(entries, entry)
					}
					e.Births(false)
					dst := make([]byte, 0, 256<<10)
					b.ReportAllocs()
					for b.Loop() {
						dst = e.Join(dst[:0], topic, entries)
					}
					b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/poll")
					b.ReportMetric(float64(len(dst))/float64(batch), "bytes/poll")
				})
			}
		}
	}
}
