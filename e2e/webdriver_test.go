//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// browser is a headless Chromium with one window, driven by W3C WebDriver
// through chromedriver.
type browser struct {
	t       *testing.T
	session string // URL
	client  http.Client
}

// startBrowser ends with the test.
func startBrowser(t *testing.T, dir string) *browser {
	t.Helper()
	for _, name := range []string{"chromium", "chromedriver"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Fatalf("%v: install Debian's chromium and chromium-driver", err)
		}
	}
	addr := loopback(freePort(t))
	_, port, _ := strings.Cut(addr, ":")
	out, err := os.Create(filepath.Join(dir, "chromedriver.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	driver, err := startProcess("chromedriver", commandTo(out, "chromedriver", "--port="+port, "--allowed-ips=127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := driver.kill9(); err != nil {
			t.Error(err)
		}
	})
	b := &browser{t: t, session: "http://" + addr + "/session", client: http.Client{Timeout: time.Minute}}
	waitFor(t, "chromedriver", 30*time.Second, func(ctx context.Context) error {
		var st struct {
			Ready bool `json:"ready"`
		}
		if err := b.call(ctx, http.MethodGet, "http://"+addr+"/status", nil, &st); err != nil || !st.Ready {
			return fmt.Errorf("ready %t: %w", st.Ready, err)
		}
		return nil
	})
	var made struct {
		ID string `json:"sessionId"`
	}
	options := map[string]any{"args": []string{"--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
		"--disable-lcd-text", "--hide-scrollbars", "--no-first-run", "--disable-background-networking", "--window-size=1200,1000",
		"--user-data-dir=" + filepath.Join(dir, "chromium")}}
	b.must(http.MethodPost, "", map[string]any{"capabilities": map[string]any{"alwaysMatch": map[string]any{
		"browserName": "chrome", "goog:chromeOptions": options,
		"goog:loggingPrefs": map[string]string{"browser": "ALL", "performance": "ALL"}}}}, &made)
	b.session += "/" + made.ID
	t.Cleanup(func() {
		if err := b.call(context.Background(), http.MethodDelete, b.session, nil, nil); err != nil {
			t.Error(err)
		}
	})
	return b
}

// call makes one WebDriver call and decodes its value.
func (b *browser) call(ctx context.Context, method, url string, in, out any) error {
	var body io.Reader
	if in != nil {
		raw, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct {
		Value json.RawMessage `json:"value"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("chromedriver: %s: %s", resp.Status, lastBytes(string(answer.Value), 1000))
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer.Value, out)
}

func (b *browser) must(method, path string, in, out any) {
	b.t.Helper()
	if err := b.call(b.t.Context(), method, b.session+path, in, out); err != nil {
		b.t.Fatal(err)
	}
}

func (b *browser) open(url string) {
	b.t.Helper()
	b.must(http.MethodPost, "/url", map[string]string{"url": url}, nil)
}

// run evaluates JavaScript in the page, from outside its policy.
func (b *browser) run(script string, out any) {
	b.t.Helper()
	b.must(http.MethodPost, "/execute/sync", map[string]any{"script": script, "args": []any{}}, out)
}

// text is the visible text of an element, in one line.
func (b *browser) text(selector string) string {
	b.t.Helper()
	var s string
	b.run(`return document.querySelector(`+quoteJS(selector)+`)?.innerText ?? ""`, &s)
	return strings.Join(strings.Fields(s), " ")
}

func quoteJS(s string) string {
	raw, _ := json.Marshal(s) // a string always can
	return string(raw)
}

// cdp calls the Chrome DevTools protocol.
func (b *browser) cdp(cmd string, params map[string]any, out any) {
	b.t.Helper()
	b.must(http.MethodPost, "/goog/cdp/execute", map[string]any{"cmd": cmd, "params": params}, out)
}

// complaints returns what the console got that is at least a warning since the
// last call: errors of scripts, refusals by the policy, requests that failed.
func (b *browser) complaints() (out []string) {
	b.t.Helper()
	var lines []struct{ Level, Message string }
	b.must(http.MethodPost, "/se/log", map[string]string{"type": "browser"}, &lines)
	for _, l := range lines {
		if l.Level == "SEVERE" || l.Level == "WARNING" {
			out = append(out, l.Message)
		}
	}
	return out
}

// requests returns the URLs that were asked for since the last call.
func (b *browser) requests() (out []string) {
	b.t.Helper()
	var lines []struct{ Message string }
	b.must(http.MethodPost, "/se/log", map[string]string{"type": "performance"}, &lines)
	for _, l := range lines {
		var event struct {
			Message struct {
				Method string
				Params struct{ Request struct{ URL string } }
			}
		}
		if err := json.Unmarshal([]byte(l.Message), &event); err != nil {
			b.t.Fatal(err)
		}
		if event.Message.Method == "Network.requestWillBeSent" {
			out = append(out, event.Message.Params.Request.URL)
		}
	}
	return out
}

// screen sets the window's size, and whether the reader prefers dark pages.
func (b *browser) screen(width int, dark bool) {
	b.t.Helper()
	scheme := "light"
	if dark {
		scheme = "dark"
	}
	b.cdp("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false}, nil)
	b.cdp("Emulation.setEmulatedMedia", map[string]any{"features": []any{map[string]string{"name": "prefers-color-scheme", "value": scheme}}}, nil)
}

// shot writes the whole page to a PNG file in the directory STATUS_PAGE_SHOTS,
// if that is set.
func (b *browser) shot(name string) {
	b.t.Helper()
	dir := os.Getenv("STATUS_PAGE_SHOTS")
	if dir == "" {
		return
	}
	var height float64
	b.run(`return document.documentElement.scrollHeight`, &height)
	var width float64
	b.run(`return document.documentElement.clientWidth`, &width)
	var taken struct{ Data string }
	b.cdp("Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": true,
		"clip": map[string]any{"x": 0, "y": 0, "width": width, "height": height, "scale": 1}}, &taken)
	raw, err := base64.StdEncoding.DecodeString(taken.Data)
	if err != nil {
		b.t.Fatal(err)
	}
	if raw, err = smallPNG(raw); err != nil {
		b.t.Fatal(err)
	}
	path := filepath.Join(dir, name+".png")
	if err := os.WriteFile(path, raw, 0o644); err != nil {
		b.t.Fatal(err)
	}
	b.t.Logf("screenshot %s: %d KiB", path, len(raw)>>10)
}

// smallPNG encodes a picture anew with its 256 commonest colours: a page has
// few, and the rest are shades at the edges of letters.
func smallPNG(raw []byte) ([]byte, error) {
	img, err := png.Decode(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	at := img.Bounds()
	uses := map[color.RGBA]int{}
	for y := at.Min.Y; y < at.Max.Y; y++ {
		for x := at.Min.X; x < at.Max.X; x++ {
			uses[color.RGBAModel.Convert(img.At(x, y)).(color.RGBA)]++
		}
	}
	var common []color.RGBA
	for c := range uses {
		common = append(common, c)
	}
	slices.SortFunc(common, func(a, b color.RGBA) int { return uses[b] - uses[a] })
	var palette color.Palette
	for _, c := range common[:min(256, len(common))] {
		palette = append(palette, c)
	}
	out := image.NewPaletted(at, palette)
	nearest := map[color.RGBA]uint8{}
	for y := at.Min.Y; y < at.Max.Y; y++ {
		for x := at.Min.X; x < at.Max.X; x++ {
			c := color.RGBAModel.Convert(img.At(x, y)).(color.RGBA)
			i, known := nearest[c]
			if !known {
				i = uint8(palette.Index(c))
				nearest[c] = i
			}
			out.SetColorIndex(x, y, i)
		}
	}
	var b bytes.Buffer
	err = (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&b, out)
	return b.Bytes(), err
}
