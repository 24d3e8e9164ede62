// A WASI 0.1 program in plain Go. net/http/cgi reads the request from the environment and stdin (RFC 3875) and hands
// it to an ordinary http.Handler, so this is a web program like any other.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/cgi"
	"os"
	"strconv"
	"strings"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("go-cgi: ")
	if os.Getenv("EVENT_TYPE") == "message" {
		if err := answerMessage(os.Stdin, os.Stdout); err != nil {
			log.Fatal(err)
		}
		return
	}
	if err := cgi.Serve(http.HandlerFunc(route)); err != nil {
		log.Fatal(err)
	}
}

// A network message comes whole on stdin; all that is written to stdout is the answer.
func answerMessage(in io.Reader, out io.Writer) error {
	message, err := io.ReadAll(in)
	if err != nil {
		return fmt.Errorf("reading the message: %w", err)
	}
	return json.NewEncoder(out).Encode(map[string]any{
		"language": "go",
		"bytes":    len(message),
		"message":  string(message),
	})
}

func route(w http.ResponseWriter, r *http.Request) {
	switch path := r.URL.Path; {
	case path == "/":
		fmt.Fprintln(w, "Hello from Go by way of CGI")
	case path == "/echo":
		if contentType := r.Header.Get("Content-Type"); contentType != "" {
			w.Header().Set("Content-Type", contentType)
		} else {
			w.Header().Set("Content-Type", "application/octet-stream")
		}
		if _, err := io.Copy(w, r.Body); err != nil {
			log.Fatalf("echoing the body: %v", err)
		}
	case path == "/env":
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(environment())
	case path == "/cookies":
		http.SetCookie(w, &http.Cookie{Name: "a", Value: "1", Path: "/"})
		http.SetCookie(w, &http.Cookie{Name: "b", Value: "2", Path: "/"})
		fmt.Fprintln(w, "two cookies")
	case path == "/stream":
		for n := 1; n <= 10; n++ {
			fmt.Fprintf(w, "piece %d\n", n)
			w.(http.Flusher).Flush()
		}
	case path == "/fail":
		log.Print("asked to fail by the request for /fail")
		os.Exit(3)
	case strings.HasPrefix(path, "/status/"):
		status, err := strconv.Atoi(strings.TrimPrefix(path, "/status/"))
		if err != nil || status < 200 || status > 599 {
			http.Error(w, "no such status", http.StatusBadRequest)
			return
		}
		w.WriteHeader(status)
		fmt.Fprintf(w, "status %d\n", status)
	default:
		http.NotFound(w, r)
	}
}

func environment() map[string]string {
	variables := map[string]string{}
	for _, pair := range os.Environ() {
		name, value, _ := strings.Cut(pair, "=")
		variables[name] = value
	}
	return variables
}
