/* SPDX-License-Identifier: MIT */
/*
 * messages - TCP sender and receiver of the benchmark: pipelined messages of two sizes
 *
 *     messages send ADDRESS PORT FROM TO
 *     messages recv ADDRESS PORT FROM TO
 *
 * The sender writes messages of alternately SHORT and LONG bytes to one connection, with
 * TCP_NODELAY and without waiting for answers, as databases and HTTP/2 servers do. A short one is
 * sent as a single packet, a long one as a GSO packet. If the two take different ways, they
 * overtake each other. FROM, TO and the output are as in load.c, in bytes instead of packets, but
 * the other counts include bad bytes. Overflows and late are 0: the kernel counts packets out of
 * order.
 */
#define _GNU_SOURCE
#include <netinet/tcp.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "load.h"

enum {
	SHORT = 1400,
	LONG = 20000,
	CHUNK = 256 << 10, /* bytes per read */
};

static const struct timeval PATIENCE = { .tv_sec = 1 };

static int open_socket(void)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;

	if (fd < 0)
		die("socket");
	/* If no packet arrives, both sides must give up. */
	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &PATIENCE, sizeof(PATIENCE)) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &PATIENCE, sizeof(PATIENCE)) < 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) < 0)
		die("setsockopt");
	return fd;
}

/* Discards unsent data at the end: it would disturb the next measurement. */
static void discard_at_close(int fd)
{
	struct linger none = { .l_onoff = 1, .l_linger = 0 };

	if (setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof(none)) < 0)
		die("setsockopt");
}

static int run_sender(char **arg)
{
	static uint8_t content[PERIOD + LONG];
	struct sockaddr_in to = address(arg[0], arg[1]);
	struct window w = window_of(arg + 2);
	int fd = open_socket();
	bool is_long = false;
	uint64_t at;

	discard_at_close(fd);
	fill(content, sizeof(content));
	if (connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0)
		die("connect");
	for (; (at = now()) < w.to; is_long = !is_long) {
		ssize_t sent = send(fd, content + w.total % PERIOD, is_long ? LONG : SHORT, 0);

		if (sent > 0)
			count(&w, at, (uint64_t)sent);
		else if (errno != EAGAIN)
			die("send");
	}
	sleep_until(w.to + GRACE_NS);
	return print(&w);
}

static int accept_sender(struct sockaddr_in here)
{
	int fd = open_socket(), one = 1;

	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0)
		die("setsockopt");
	if (bind(fd, (struct sockaddr *)&here, sizeof(here)) < 0 || listen(fd, 1) < 0)
		die("listen");
	say_ready();
	fd = accept4(fd, NULL, NULL, 0);
	if (fd < 0)
		die("accept");
	return fd;
}

static int run_receiver(char **arg)
{
	static uint8_t expected[PERIOD + CHUNK], got[CHUNK];
	struct window w = window_of(arg + 2);
	int fd = accept_sender(address(arg[0], arg[1]));
	ssize_t n;

	fill(expected, sizeof(expected));
	while (now() < w.to + GRACE_NS && (n = recv(fd, got, sizeof(got), 0)) != 0) {
		if (n < 0 && errno == EAGAIN)
			continue;
		if (n < 0)
			break; /* reset by the sender, which has finished */
		if (memcmp(got, expected + w.total % PERIOD, (size_t)n))
			w.bad += (uint64_t)n;
		count(&w, now(), (uint64_t)n);
	}
	return print(&w);
}

int main(int argc, char **argv)
{
	if (argc == 6 && !strcmp(argv[1], "send"))
		return run_sender(argv + 2);
	if (argc == 6 && !strcmp(argv[1], "recv"))
		return run_receiver(argv + 2);
	fprintf(stderr, "usage: messages send ADDRESS PORT FROM_NS TO_NS\n"
			"       messages recv ADDRESS PORT FROM_NS TO_NS\n");
	return 2;
}
