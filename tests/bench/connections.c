// SPDX-License-Identifier: GPL-2.0-only
/*
 * TCP connections, as many as there can be: Python would be most of the cost.
 *
 *   connections accept ADDRESS PORT THREADS          until it is killed
 *   connections connect ADDRESS PORT THREADS SECONDS prints connections a second
 *
 * A connection is opened and reset at once (SO_LINGER 0), so that no port is left
 * in TIME_WAIT. The listener is transparent, as TPROXY asks for.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_THREADS 256
#define BACKLOG 4096

static struct sockaddr_in address = { .sin_family = AF_INET };
static double deadline;
static int listener;

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void *accept_all(void *unused)
{
	(void)unused;
	for (;;) {
		int connection = accept(listener, NULL, NULL);

		if (connection >= 0)
			close(connection);
	}
	return NULL;
}

static void *connect_all(void *count)
{
	const struct linger reset = { .l_onoff = 1 };

	for (;;) {
		int connection = socket(AF_INET, SOCK_STREAM, 0);

		if (connection < 0)
			err(1, "socket");
		setsockopt(connection, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		if (connect(connection, (struct sockaddr *)&address, sizeof(address)))
			err(1, "connect");
		close(connection);
		/* A SYN that is lost is sent again after a second. */
		if (now() >= deadline)
			break;
		++*(long *)count;
	}
	return NULL;
}

static void listen_transparently(void)
{
	int on = 1;

	listener = socket(AF_INET, SOCK_STREAM, 0);
	if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) ||
	    setsockopt(listener, SOL_IP, IP_TRANSPARENT, &on, sizeof(on)) ||
	    bind(listener, (struct sockaddr *)&address, sizeof(address)) ||
	    listen(listener, BACKLOG))
		err(1, "listen");
	puts("listening");
	fflush(stdout);
}

int main(int argc, char **argv)
{
	static pthread_t threads[MAX_THREADS];
	/* Each on a cache line of its own. */
	static long counts[MAX_THREADS][8];
	int is_server = argc == 5 && !strcmp(argv[1], "accept");
	int count = argc > 4 ? atoi(argv[4]) : 0, i;
	double started;
	long total = 0;

	if ((!is_server && (argc != 6 || strcmp(argv[1], "connect"))) || count < 1 ||
	    count > MAX_THREADS || !inet_aton(argv[2], &address.sin_addr))
		errx(2, "see the source for its arguments");
	address.sin_port = htons(atoi(argv[3]));
	/* Nothing is left behind by a bench that was killed. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (is_server)
		listen_transparently();
	started = now();
	deadline = is_server ? 0 : started + atof(argv[5]);
	for (i = 0; i < count; i++)
		if (pthread_create(&threads[i], NULL, is_server ? accept_all : connect_all,
				   counts[i]))
			errx(1, "no thread");
	for (i = 0; i < count; i++) {
		pthread_join(threads[i], NULL);
		total += counts[i][0];
	}
	printf("%.1f\n", total / (deadline - started));
	return 0;
}
