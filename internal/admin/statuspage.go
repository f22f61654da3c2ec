package admin

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html/template"
	"net/http"
	"time"
)

// The status page is one document with its style and script in it, made by the
// node: it works without the internet, and without JavaScript. The script asks
// for the page again and puts in what has changed, so that all text goes
// through html/template, which escapes it, and there is one place that decides
// what is shown.

//go:embed statuspage.html
var pageHTML string

//go:embed statuspage.css
var pageCSS string

//go:embed statuspage.js
var pageJS string

var (
	pageTemplate = template.Must(template.New("status").Parse(pageHTML))

	// pagePolicy lets the browser run and show what is in the page, ask this
	// node, and nothing else: neither load from elsewhere nor be framed. An
	// inline script or style is known by its digest (CSP level 2).
	pagePolicy = "default-src 'none'; script-src '" + cspHash(pageJS) + "'; style-src '" + cspHash(pageCSS) +
		"'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

	// pageBuild names the page's own code: a page of another build reloads.
	pageBuild = cspHash(pageHTML + pageCSS + pageJS)
)

func cspHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

func (s *Server) page(w http.ResponseWriter, _ *http.Request) {
	s.writePage(w, newPage(s.cluster.Status(), time.Now()))
}

func (s *Server) writePage(w http.ResponseWriter, p *page) {
	body, err := p.render()
	if err != nil {
		s.cfg.Logger.Error("cannot make the status page", "error", err)
		http.Error(w, "the status page could not be made: see the node's log", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(body) // the client is gone: nobody to tell
}

// render makes the document. Nothing is sent of one that fails halfway.
func (p *page) render() ([]byte, error) {
	var b bytes.Buffer
	err := pageTemplate.Execute(&b, struct {
		*page
		Style  template.CSS
		Script template.JS
		Build  string
	}{p, template.CSS(pageCSS), template.JS(pageJS), pageBuild})
	return b.Bytes(), err
}
