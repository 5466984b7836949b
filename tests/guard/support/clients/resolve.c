// SPDX-License-Identifier: GPL-2.0-only
/*
 * resolve NAME...: for each name a line, of all names at once: the name, the error of
 * getaddrinfo(3) or 0, the canonical name, and the addresses in order of their text. By the C
 * library that this is linked with.
 */
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOST 256

static int compare(const void *one, const void *other)
{
	return strcmp(one, other);
}

static void resolve(const char *name)
{
	static char texts[MOST][INET6_ADDRSTRLEN];
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_CANONNAME }, *found;
	char line[MOST * INET6_ADDRSTRLEN];
	int error, count = 0, length;

	error = getaddrinfo(name, NULL, &hints, &found);
	length = snprintf(line, sizeof(line), "%s %d", name, error);
	if (!error) {
		length += sprintf(line + length, " %s", found->ai_canonname);
		for (; found && count < MOST; found = found->ai_next) {
			const void *address = &((struct sockaddr_in *)found->ai_addr)->sin_addr;

			if (found->ai_family == AF_INET6)
				address = &((struct sockaddr_in6 *)found->ai_addr)->sin6_addr;
			inet_ntop(found->ai_family, address, texts[count++], sizeof(texts[0]));
		}
		qsort(texts, count, sizeof(texts[0]), compare);
		for (int at = 0; at < count; at++)
			length += sprintf(line + length, " %s", texts[at]);
	}
	line[length++] = '\n';
	/* One write, so that lines stay whole. */
	if (write(1, line, length) != length)
		_exit(1);
}

int main(int count, char **arguments)
{
	for (int at = 1; at < count; at++)
		if (fork() == 0) {
			resolve(arguments[at]);
			_exit(0);
		}
	while (wait(NULL) > 0)
		;
	return 0;
}
