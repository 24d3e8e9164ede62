// A web application as WebAssembly: an ordinary http.Handler behind the standard library's CGI server.
package main

import (
	"encoding/json"
	"log"
	"net/http"
	"net/http/cgi"
	"strings"
)

func main() {
	if err := cgi.Serve(http.HandlerFunc(handle)); err != nil {
		log.Fatal(err)
	}
}

func handle(w http.ResponseWriter, r *http.Request) {
	name := strings.Trim(r.URL.Path, "/")
	if name == "" {
		name = "world"
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(map[string]string{"hello": name}); err != nil {
		log.Print(err)
	}
}
