// SPDX-License-Identifier: GPL-2.0-only
/*
 * DNS questions over UDP, so many at a time: prints answers a second, the median of
 * the microseconds that they took, how many questions had none, and all answers.
 *
 *   questions ADDRESS SECONDS AT_A_TIME NAMES [new]
 *
 * They are for the A records of n0.bench.example and so many names in turn, each of
 * which is asked for once before the clock starts; 0: of new names below wild.example.
 * By one socket, or "new": by a new one for each, as C libraries do.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define DNS_PORT 53
#define HEADER 12
#define MAX_AT_A_TIME 1024
#define MAX_MESSAGE 512
#define MAX_TIMES (1 << 22)
/* A question without an answer is given up, and another one takes its place. */
#define PATIENCE 1.0

/* By the id of the question: when it was sent; 0: there is none. */
static double sent[MAX_AT_A_TIME];
static float times[MAX_TIMES];
static long answered, asked, lost;
static unsigned long names;
static uint64_t fresh;
static struct sockaddr_in server = { .sin_family = AF_INET };
/* The one socket; or those of the questions, by id, and what waits for all of them. */
static int fd = -1, sockets[MAX_AT_A_TIME], waiting = -1;
static bool is_new;

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static int open_socket(void)
{
	/* Short, so that those that are lost are seen also while others are answered. */
	const struct timeval wait = { .tv_usec = 100000 };
	int made = socket(AF_INET, SOCK_DGRAM, 0);

	if (made < 0 || setsockopt(made, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait)) ||
	    connect(made, (struct sockaddr *)&server, sizeof(server)))
		err(1, "socket");
	return made;
}

/* The socket that a question goes by. */
static int socket_of(unsigned id)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u32 = id };

	if (!is_new)
		return fd;
	if (sockets[id])
		close(sockets[id]);
	sockets[id] = open_socket();
	if (epoll_ctl(waiting, EPOLL_CTL_ADD, sockets[id], &event))
		err(1, "epoll_ctl");
	return sockets[id];
}

/* A socket that has an answer, or -1. */
static int answered_socket(void)
{
	struct epoll_event event;
	int count;

	if (!is_new)
		return fd;
	count = epoll_wait(waiting, &event, 1, 100);
	if (count < 0)
		err(1, "epoll_wait");
	return count ? sockets[event.data.u32] : -1;
}

static void put_label(unsigned char **end, const char *label)
{
	size_t length = strlen(label);

	*(*end)++ = length;
	memcpy(*end, label, length);
	*end += length;
}

static void ask(unsigned id)
{
	/* Recursion is desired; one question. */
	unsigned char message[MAX_MESSAGE] = { id >> 8, id, 1, 0, 0, 1 }, *end = message + HEADER;
	static const unsigned char type_a_class_in[] = { 0, 0, 1, 0, 1 };
	char label[32];

	if (names)
		snprintf(label, sizeof(label), "n%lu", asked % names);
	else
		snprintf(label, sizeof(label), "x%llx", (unsigned long long)fresh++);
	put_label(&end, label);
	put_label(&end, names ? "bench" : "wild");
	put_label(&end, "example");
	memcpy(end, type_a_class_in, sizeof(type_a_class_in));
	end += sizeof(type_a_class_in);
	asked++;
	/* What a new socket takes is of the question's time. */
	sent[id] = now();
	if (send(socket_of(id), message, end - message, 0) < 0)
		err(1, "send");
}

/* Asks again for those that had no answer for too long. */
static void give_up(unsigned at_a_time)
{
	double since = now() - PATIENCE;
	unsigned id;

	for (id = 0; id < at_a_time; id++) {
		if (sent[id] && sent[id] < since) {
			lost++;
			ask(id);
		}
	}
}

/* The id of a question that has its answer; at_a_time: none has. */
static unsigned receive(unsigned at_a_time)
{
	unsigned char message[MAX_MESSAGE];
	int from = answered_socket();
	ssize_t length = from < 0 ? -1 : recv(from, message, sizeof(message), 0);
	unsigned id;

	if (length < 0) {
		if (from >= 0 && errno != EAGAIN)
			err(1, "recv");
		give_up(at_a_time);
		return at_a_time;
	}
	id = message[0] << 8 | message[1];
	if (length < HEADER || id >= at_a_time || !sent[id])
		return at_a_time; /* it comes late */
	if (message[3] & 15 || !(message[6] << 8 | message[7]))
		errx(1, "rcode %d, %d answers", message[3] & 15, message[6] << 8 | message[7]);
	if (answered < MAX_TIMES)
		times[answered] = (now() - sent[id]) * 1e6;
	answered++;
	sent[id] = 0;
	return id;
}

static int compare(const void *a, const void *b)
{
	float x = *(const float *)a, y = *(const float *)b;

	return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
	double started, ended, checked;
	unsigned at_a_time, id;
	long count, before;

	is_new = argc == 6 && !strcmp(argv[5], "new");
	if (argc != 5 + is_new || !inet_aton(argv[1], &server.sin_addr) || atoi(argv[3]) < 1 ||
	    atoi(argv[3]) > MAX_AT_A_TIME)
		errx(2, "see the source for its arguments");
	server.sin_port = htons(DNS_PORT);
	at_a_time = atoi(argv[3]);
	names = strtoul(argv[4], NULL, 10);
	/* Nothing is left behind by a bench that was killed. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getrandom(&fresh, sizeof(fresh), 0) != sizeof(fresh))
		err(1, "getrandom");
	if (is_new)
		waiting = epoll_create1(0);
	else
		fd = open_socket();

	for (id = 0; id < at_a_time; id++)
		ask(id);
	while (answered < (long)names) {
		id = receive(at_a_time);
		if (id < at_a_time)
			ask(id);
	}
	before = answered;
	answered = lost = 0;
	checked = started = now();
	do {
		id = receive(at_a_time);
		if (id < at_a_time)
			ask(id);
		ended = now();
		if (ended > checked + PATIENCE / 2) {
			checked = ended;
			give_up(at_a_time);
		}
	} while (ended < started + atof(argv[2]));

	count = answered < MAX_TIMES ? answered : MAX_TIMES;
	qsort(times, count, sizeof(times[0]), compare);
	printf("%.1f %.1f %ld %ld\n", answered / (ended - started), count ? times[count / 2] : 0,
	       lost, before + answered);
	return 0;
}
