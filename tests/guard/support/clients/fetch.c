// SPDX-License-Identifier: GPL-2.0-only
/*
 * fetch HOST PORT: what an HTTP server says, by the C library that this is linked with.
 * fetch HOST: its addresses, a line each.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int connect_to(const struct addrinfo *found)
{
	int fd = -1;

	for (; found; found = found->ai_next) {
		fd = socket(found->ai_family, SOCK_STREAM, 0);
		if (fd < 0)
			continue;
		if (connect(fd, found->ai_addr, found->ai_addrlen) == 0)
			return fd;
		close(fd);
	}
	return -1;
}

static void print(const struct addrinfo *found)
{
	char text[INET6_ADDRSTRLEN];

	for (; found; found = found->ai_next) {
		const void *address = &((struct sockaddr_in *)found->ai_addr)->sin_addr;

		if (found->ai_family == AF_INET6)
			address = &((struct sockaddr_in6 *)found->ai_addr)->sin6_addr;
		puts(inet_ntop(found->ai_family, address, text, sizeof(text)));
	}
}

int main(int count, char **arguments)
{
	static const char request[] = "GET / HTTP/1.0\r\n\r\n";
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found;
	char answer[4096] = "";
	size_t length = 0;
	ssize_t got;
	int error, fd;

	error = getaddrinfo(arguments[1], count > 2 ? arguments[2] : NULL, &hints, &found);
	if (error) {
		fprintf(stderr, "%s: %s\n", arguments[1], gai_strerror(error));
		return 1;
	}
	if (count < 3) {
		print(found);
		return 0;
	}
	fd = connect_to(found);
	if (fd < 0) {
		fprintf(stderr, "%s: %s\n", arguments[1], strerror(errno));
		return 1;
	}
	if (write(fd, request, strlen(request)) < 0)
		return 1;
	/* The server says no more after its first line; it does not close. */
	while (!strstr(answer, "\n\r\n") && length + 1 < sizeof(answer)) {
		got = read(fd, answer + length, sizeof(answer) - 1 - length);
		if (got <= 0)
			return 1;
		length += got;
	}
	fputs(strstr(answer, "\r\n\r\n") + 4, stdout);
	return 0;
}
