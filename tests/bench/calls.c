// SPDX-License-Identifier: GPL-2.0-only
/*
 * One system call on a socket, over and over: prints nanoseconds a call.
 *
 *   calls socket SECONDS                socket(2) of UDP, and close(2)
 *   calls connect SECONDS ADDRESS PORT  connect(2) of a UDP socket
 *   calls sendto SECONDS ADDRESS PORT   sendto(2), 64 bytes, of one that is not connected
 */
#define _GNU_SOURCE
#include <err.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* So many between two looks at the clock. */
#define CALLS 64

static struct addrinfo *destination;
static int fd = -1;

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static int open_udp(int family)
{
	int made = socket(family, SOCK_DGRAM, 0);

	if (made < 0)
		err(1, "socket");
	return made;
}

static void call_socket(void)
{
	close(open_udp(AF_INET));
}

static void call_connect(void)
{
	if (connect(fd, destination->ai_addr, destination->ai_addrlen))
		err(1, "connect");
}

static void call_sendto(void)
{
	static const char data[64];

	if (sendto(fd, data, sizeof(data), 0, destination->ai_addr, destination->ai_addrlen) < 0)
		err(1, "sendto");
}

static void look_up(const char *address, const char *port)
{
	const struct addrinfo hints = {
		.ai_socktype = SOCK_DGRAM,
		.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV,
	};
	int failure = getaddrinfo(address, port, &hints, &destination);

	if (failure)
		errx(2, "%s port %s: %s", address, port, gai_strerror(failure));
	fd = open_udp(destination->ai_family);
}

int main(int argc, char **argv)
{
	double started, ended, seconds = argc > 2 ? atof(argv[2]) : 0;
	void (*call)(void) = NULL;
	long calls = 0;
	int i;

	if (argc == 3 && !strcmp(argv[1], "socket")) {
		call = call_socket;
	} else if (argc == 5) {
		call = !strcmp(argv[1], "connect") ? call_connect :
		       !strcmp(argv[1], "sendto")  ? call_sendto :
						     NULL;
		look_up(argv[3], argv[4]);
	}
	if (!call)
		errx(2, "see the source for its arguments");
	/* Nothing is left behind by a bench that was killed. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	started = now();
	do {
		for (i = 0; i < CALLS; i++)
			call();
		calls += CALLS;
		ended = now();
	} while (ended < started + seconds);
	printf("%.2f\n", (ended - started) * 1e9 / calls);
	return 0;
}
