// A web server for looking at the machine it runs in, and for being as unkind to it as a program can be. Linked
// statically: it runs in an image that holds nothing but init.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(0)
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	if os.Getenv("STUBBORN") != "" {
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGCONT)
	go func() {
		for range signals {
			continued.Add(1)
		}
	}()
	routes := map[string]func(http.ResponseWriter, *http.Request) error{
		"/read": read, "/link": link, "/write": write, "/fetch": fetch, "/kill": kill, "/hold": hold, "/holding": count, "/time": now,
		"/size": size, "/continued": timesContinued,
	}
	for path, route := range routes {
		http.HandleFunc(path, told(route))
	}
	log.Fatal(http.ListenAndServe(":"+port, nil))
}

// A handler that tells what went wrong.
func told(route func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := route(w, r); err != nil {
			http.Error(w, err.Error(), http.StatusTeapot)
		}
	}
}

// A file's content.
func read(w http.ResponseWriter, r *http.Request) error {
	file, err := os.Open(r.FormValue("path"))
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(w, file)
	return err
}

// Where a link leads.
func link(w http.ResponseWriter, r *http.Request) error {
	target, err := os.Readlink(r.FormValue("path"))
	fmt.Fprint(w, target)
	return err
}

// Writes a file, and brings it to the disk if asked to.
func write(w http.ResponseWriter, r *http.Request) error {
	path := r.FormValue("path")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.WriteString(r.FormValue("text")); err != nil {
		return err
	}
	if r.FormValue("fsync") != "" {
		return file.Sync()
	}
	return nil
}

// What another server in the machine says.
func fetch(w http.ResponseWriter, r *http.Request) error {
	response, err := http.Get(r.FormValue("url"))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(w, response.Body)
	return err
}

// Sends init a signal.
func kill(w http.ResponseWriter, r *http.Request) error {
	number, err := strconv.Atoi(r.FormValue("signal"))
	if err != nil {
		return err
	}
	return syscall.Kill(1, syscall.Signal(number))
}

var holding atomic.Int32

// Never answers.
func hold(w http.ResponseWriter, r *http.Request) error {
	holding.Add(1)
	select {}
}

// How many requests are never answered.
func count(w http.ResponseWriter, r *http.Request) error {
	fmt.Fprint(w, holding.Load())
	return nil
}

var continued atomic.Int32

// How often init has told that the machine had stood still.
func timesContinued(w http.ResponseWriter, r *http.Request) error {
	fmt.Fprint(w, continued.Load())
	return nil
}

// The size of the file system that a path is on, in bytes.
func size(w http.ResponseWriter, r *http.Request) error {
	var found syscall.Statfs_t
	if err := syscall.Statfs(r.FormValue("path"), &found); err != nil {
		return err
	}
	fmt.Fprint(w, found.Blocks*uint64(found.Bsize))
	return nil
}

// The machine's clock, in milliseconds since 1970.
func now(w http.ResponseWriter, r *http.Request) error {
	fmt.Fprint(w, time.Now().UnixMilli())
	return nil
}
