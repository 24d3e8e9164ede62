// A web server in plain Go. It answers with the odd things that servers answer with, so that what stands in front of it
// can be seen to leave them alone.
package main

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("exec-go: ")
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	log.Printf("listening on port %s", port)
	// No ServeMux: it would tidy up paths before we see them.
	log.Fatal(http.ListenAndServe(":"+port, http.HandlerFunc(route)))
}

func route(w http.ResponseWriter, r *http.Request) {
	target, query, _ := strings.Cut(r.RequestURI, "?")
	switch target {
	case "/":
		fmt.Fprintln(w, "Hello from a Go server")
	case "/echo":
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
		if _, err := io.Copy(w, r.Body); err != nil {
			log.Printf("echoing the body: %v", err)
		}
	case "/redirect":
		http.Redirect(w, r, "/headers?a=%20b", http.StatusFound)
	case "/gzip":
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("Content-Encoding", "gzip")
		packed := gzip.NewWriter(w)
		defer packed.Close()
		fmt.Fprint(packed, strings.Repeat("this was compressed\n", 100))
	case "/cookies":
		w.Header().Add("Set-Cookie", "a=1; Path=/")
		w.Header().Add("Set-Cookie", "b=2; Path=/")
		fmt.Fprintln(w, "two cookies")
	case "/headers":
		w.Header().Set("Content-Type", "application/json")
		// Go takes Host out of the headers.
		headers := r.Header.Clone()
		headers.Set("Host", r.Host)
		json.NewEncoder(w).Encode(headers)
	case "/latin1":
		// "café" in ISO 8859-1, which HTTP/1.1 allows and UTF-8 does not.
		w.Header().Set("X-Drink", "caf\xe9")
		fmt.Fprintln(w, "a header in latin-1")
	case "/stream":
		for piece := 0; piece < 10; piece++ {
			fmt.Fprintf(w, "piece %d\n", piece)
			w.(http.Flusher).Flush()
			time.Sleep(milliseconds(query))
		}
	case "/slow":
		time.Sleep(milliseconds(query))
		fmt.Fprintln(w, "slow")
	case "/die":
		log.Print("asked to die by the request for /die")
		os.Exit(3)
	default:
		// /raw and all that starts with it or is stranger: the target as it came.
		fmt.Fprint(w, r.RequestURI)
	}
}

func milliseconds(query string) time.Duration {
	ms, err := strconv.Atoi(strings.TrimPrefix(query, "ms="))
	if err != nil {
		return 0
	}
	return time.Duration(ms) * time.Millisecond
}
