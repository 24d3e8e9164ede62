/* A WASI 0.1 program in plain C by the CGI convention (RFC 3875): the request's head is in the environment, its body on
 * stdin, and the response goes to stdout as headers, an empty line and the body. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern char **environ;

static const char *variable(const char *name)
{
    const char *value = getenv(name);
    return value ? value : "";
}

/* A JSON string (RFC 8259, section 7). */
static void print_quoted(const char *text, size_t length)
{
    putchar('"');
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = (unsigned char)text[i];
        if (byte == '"' || byte == '\\')
            printf("\\%c", byte);
        else if (byte < 0x20)
            printf("\\u%04x", byte);
        else
            putchar(byte);
    }
    putchar('"');
}

static int copy_body(void)
{
    char piece[16384];
    size_t length;
    while ((length = fread(piece, 1, sizeof piece, stdin)) > 0)
        if (fwrite(piece, 1, length, stdout) != length)
            return 1;
    return ferror(stdin) != 0;
}

static void print_environment(void)
{
    printf("Content-Type: application/json\n\n{");
    for (char **pair = environ; *pair; pair++) {
        size_t name_length = strcspn(*pair, "=");
        const char *value = *pair + name_length + ((*pair)[name_length] == '=');
        if (pair != environ)
            printf(", ");
        print_quoted(*pair, name_length);
        printf(": ");
        print_quoted(value, strlen(value));
    }
    printf("}\n");
}

static int answer_request(void)
{
    const char *path = variable("PATH_INFO");
    if (!*path || !strcmp(path, "/")) {
        printf("Content-Type: text/plain\n\nHello from C by way of CGI\n");
    } else if (!strcmp(path, "/echo")) {
        const char *type = variable("CONTENT_TYPE");
        printf("Content-Type: %s\n\n", *type ? type : "application/octet-stream");
        return copy_body();
    } else if (!strcmp(path, "/env")) {
        print_environment();
    } else if (!strcmp(path, "/cookies")) {
        printf("Content-Type: text/plain\nSet-Cookie: a=1; Path=/\nSet-Cookie: b=2; Path=/\n\ntwo cookies\n");
    } else if (!strcmp(path, "/stream")) {
        printf("Content-Type: text/plain\n\n");
        for (int n = 1; n <= 10; n++) {
            printf("piece %d\n", n);
            fflush(stdout);
        }
    } else if (!strcmp(path, "/fail")) {
        fprintf(stderr, "c-cgi: asked to fail by the request for /fail\n");
        return 3;
    } else if (!strncmp(path, "/status/", 8)) {
        printf("Status: %s\nContent-Type: text/plain\n\nstatus %s\n", path + 8, path + 8);
    } else {
        printf("Status: 404 Not Found\nContent-Type: text/plain\n\nnothing at %s\n", path);
    }
    return 0;
}

/* A network message comes whole on stdin; all that is written to stdout is the answer. */
static int answer_message(void)
{
    size_t length = 0, room = 4096, got;
    char *message = malloc(room);
    while (message && (got = fread(message + length, 1, room - length, stdin)) > 0) {
        length += got;
        if (length == room) {
            char *larger = realloc(message, room *= 2);
            if (!larger)
                free(message);
            message = larger;
        }
    }
    if (!message || ferror(stdin)) {
        fprintf(stderr, "c-cgi: the message could not be read after %zu bytes\n", length);
        return 1;
    }
    printf("{\"language\": \"c\", \"bytes\": %zu, \"message\": ", length);
    print_quoted(message, length);
    printf("}");
    free(message);
    return 0;
}

int main(void)
{
    int status = strcmp(variable("EVENT_TYPE"), "message") ? answer_request() : answer_message();
    return fflush(stdout) ? 1 : status;
}
