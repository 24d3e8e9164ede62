/* A web application as WebAssembly, by the CGI convention (RFC 3875): the request's head is in the environment and its
 * body on stdin; headers, an empty line and the body go to stdout. */
#include <stdio.h>
#include <stdlib.h>

int main(void)
{
    const char *method = getenv("REQUEST_METHOD");
    const char *path = getenv("PATH_INFO");
    printf("Content-Type: text/plain; charset=utf-8\n\n");
    printf("Hello from C: %s %s\n", method ? method : "", path ? path : "");
    return 0;
}
