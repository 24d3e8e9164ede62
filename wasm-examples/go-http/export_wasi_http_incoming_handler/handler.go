// Package export_wasi_http_incoming_handler is what `wit-bindgen go` calls for the interface that this component exports.
// Handle gives a request to an ordinary http.Handler.
package export_wasi_http_incoming_handler

import (
	"io"
	"net/http"
	"strconv"

	witTypes "go.bytecodealliance.org/pkg/wit/types"
	wasi "wit_component/wasi_http_types"
	"wit_component/wasi_io_streams"
)

// piece is the most that BlockingWriteAndFlush takes at once.
const piece = 4096

// Handle answers one request.
func Handle(request *wasi.IncomingRequest, out *wasi.ResponseOutparam) {
	body := request.Consume().Ok()
	stream := body.Stream().Ok()
	asked, err := http.NewRequest(method(request.Method()), request.PathWithQuery().SomeOr("/"), reader{stream})
	writer := &writer{out: out, header: http.Header{}}
	if err != nil {
		http.Error(writer, err.Error(), http.StatusBadRequest)
	} else {
		headers := request.Headers()
		for _, entry := range headers.Entries() {
			asked.Header.Add(entry.F0, string(entry.F1))
		}
		headers.Drop()
		asked.Host = request.Authority().SomeOr("")
		asked.RequestURI = asked.URL.RequestURI()
		asked.ContentLength = -1
		if length, err := strconv.ParseInt(asked.Header.Get("Content-Length"), 10, 64); err == nil {
			asked.ContentLength = length
		}
		routes.ServeHTTP(writer, asked)
	}
	writer.finish()
	// A stream is a child of its body: it has to go first.
	stream.Drop()
	body.Drop()
	request.Drop()
}

func method(method wasi.Method) string {
	names := map[uint8]string{
		wasi.Method_Get: "GET", wasi.Method_Head: "HEAD", wasi.Method_Post: "POST", wasi.Method_Put: "PUT",
		wasi.Method_Delete: "DELETE", wasi.Method_Connect: "CONNECT", wasi.Method_Options: "OPTIONS",
		wasi.Method_Trace: "TRACE", wasi.Method_Patch: "PATCH",
	}
	if name, known := names[method.Tag()]; known {
		return name
	}
	return method.Other()
}

// reader is a request's body.
type reader struct{ stream *wasi_io_streams.InputStream }

func (r reader) Read(buffer []byte) (int, error) {
	if len(buffer) == 0 {
		return 0, nil
	}
	read := r.stream.BlockingRead(uint64(len(buffer)))
	if read.IsErr() {
		if err := read.Err(); err.Tag() == wasi_io_streams.StreamError_Closed {
			return 0, io.EOF
		}
		return 0, io.ErrUnexpectedEOF
	}
	return copy(buffer, read.Ok()), nil
}

// writer is the reply: its head goes out with the first piece of its body.
type writer struct {
	out    *wasi.ResponseOutparam
	header http.Header
	body   *wasi.OutgoingBody
	stream *wasi_io_streams.OutputStream
}

func (w *writer) Header() http.Header { return w.header }

func (w *writer) WriteHeader(status int) {
	if w.body != nil {
		return
	}
	fields := wasi.MakeFields()
	for name, values := range w.header {
		for _, value := range values {
			fields.Append(name, []byte(value))
		}
	}
	response := wasi.MakeOutgoingResponse(fields)
	response.SetStatusCode(uint16(status))
	w.body = response.Body().Ok()
	wasi.ResponseOutparamSet(w.out, witTypes.Ok[*wasi.OutgoingResponse, wasi.ErrorCode](response))
	w.stream = w.body.Write().Ok()
}

func (w *writer) Write(data []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	for written := 0; written < len(data); written += piece {
		part := data[written:min(written+piece, len(data))]
		if w.stream.BlockingWriteAndFlush(part).IsErr() {
			return written, io.ErrClosedPipe // the client is gone
		}
	}
	return len(data), nil
}

func (w *writer) finish() {
	w.WriteHeader(http.StatusOK)
	w.stream.Drop()
	wasi.OutgoingBodyFinish(w.body, witTypes.None[*wasi.Fields]())
}
