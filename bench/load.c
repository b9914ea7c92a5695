/* SPDX-License-Identifier: MIT */
/*
 * load - UDP sender and receiver of the benchmark
 *
 *     load send ADDRESS PORT BYTES FLOWS RATE FROM TO
 *     load recv ADDRESS PORT BYTES FROM TO
 *
 * BYTES is the payload of each datagram; RATE is in packets per second over all flows, 0 for as
 * many as possible. FROM and TO are seconds of CLOCK_MONOTONIC: both programs work from their
 * start until TO, but count separately what happens between FROM and TO. The receiver goes on for
 * another GRACE_NS, so that its total can be compared with the sender's. At its end each prints
 *
 *     WINDOW_PACKETS TOTAL_PACKETS BAD_PACKETS OVERFLOWS
 *
 * where bad packets (receiver only; not among the others) are of the wrong length or content, and
 * overflows are datagrams that the kernel dropped for want of room in the receiver's buffer.
 *
 * Each flow is one connected socket, hence one inner source port, hence one outer source port.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
	BATCH = 32,
	FLOWS_MAX = 64,
	BYTES_MAX = 9000,
	BUFFER_BYTES = 64 << 20,
};

static const uint64_t GRACE_NS = 100 * 1000 * 1000;
static const uint64_t TICK_NS =
    1000 * 1000; /* paced packets leave, and the receiver looks, once a tick */

struct window {
	uint64_t from, to;
	uint64_t packets, total, bad, overflows;
};

static void die(const char *what)
{
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void count(struct window *w, uint64_t at, uint64_t packets)
{
	w->total += packets;
	if (at >= w->from && at < w->to)
		w->packets += packets;
}

static int print(const struct window *w)
{
	return printf("%llu %llu %llu %llu\n", (unsigned long long)w->packets,
		      (unsigned long long)w->total, (unsigned long long)w->bad,
		      (unsigned long long)w->overflows) < 0;
}

static int open_socket(void)
{
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (fd < 0)
		die("socket");
	return fd;
}

/* Enough for the receiver to sleep through many ticks; the sender keeps the default. */
static void enlarge_buffer(int fd)
{
	int bytes = BUFFER_BYTES;

	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes)) < 0)
		(void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
}

static struct sockaddr_in address(const char *host, const char *port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port)) };

	if (inet_pton(AF_INET, host, &a.sin_addr) != 1)
		die(host);
	return a;
}

/* The content of every datagram: each byte differs from its neighbours. */
static void fill(uint8_t *payload)
{
	for (size_t i = 0; i < BYTES_MAX; i++)
		payload[i] = (uint8_t)(i * 151 + 7);
}

static void sleep_until(uint64_t at)
{
	struct timespec t = { .tv_sec = (time_t)(at / 1000000000),
			      .tv_nsec = (long)(at % 1000000000) };

	(void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static unsigned transmit(int fd, struct mmsghdr *messages, unsigned n)
{
	int sent = sendmmsg(fd, messages, n, 0);

	/* A full device queue or an ICMP error is not the end: the receiver tells what is lost. */
	return sent < 0 ? 0 : (unsigned)sent;
}

static int run_sender(char **arg)
{
	static uint8_t payload[BYTES_MAX];
	struct sockaddr_in to = address(arg[0], arg[1]);
	struct iovec iov = { payload, (size_t)atoi(arg[2]) };
	unsigned flows = (unsigned)atoi(arg[3]), flow = 0;
	double rate = atof(arg[4]);
	struct window w = { .from = strtoull(arg[5], NULL, 10), .to = strtoull(arg[6], NULL, 10) };
	struct mmsghdr messages[BATCH] = { 0 };
	int fd[FLOWS_MAX];
	uint64_t start, at;

	if (flows < 1 || flows > FLOWS_MAX || iov.iov_len > BYTES_MAX)
		return 2;
	fill(payload);
	for (int i = 0; i < BATCH; i++) {
		messages[i].msg_hdr.msg_iov = &iov;
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	for (unsigned i = 0; i < flows; i++) {
		fd[i] = open_socket();
		if (connect(fd[i], (struct sockaddr *)&to, sizeof(to)) < 0)
			die("connect");
	}
	start = now();
	for (uint64_t due = start, owed = 0, given = 0; (at = now()) < w.to;) {
		unsigned n = flows > 1 ? BATCH / 4 : BATCH;

		if (rate > 0) {
			owed = (uint64_t)((double)(at - start) * rate / 1e9);
			if (given >= owed) {
				due += TICK_NS;
				sleep_until(due);
				continue;
			}
			n = (unsigned)(owed - given < n ? owed - given : n);
			if (flows > 1)
				n = 1;
			given += n;
		}
		count(&w, at, transmit(fd[flow], messages, n));
		flow = (flow + 1) % flows;
	}
	return print(&w);
}

static bool is_good(const struct mmsghdr *m, const uint8_t *expected, size_t bytes)
{
	return m->msg_len == bytes && !memcmp(m->msg_hdr.msg_iov->iov_base, expected, bytes);
}

/* The kernel attaches the number of datagrams dropped so far to each one that was not. */
static void note_overflows(struct window *w, struct msghdr *header)
{
	uint32_t dropped;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SO_RXQ_OVFL)
			continue;
		memcpy(&dropped, CMSG_DATA(c), sizeof(dropped));
		w->overflows = dropped;
	}
}

static int run_receiver(char **arg)
{
	static uint8_t payload[BYTES_MAX], memory[BATCH][BYTES_MAX + 1];
	static uint8_t control[BATCH][CMSG_SPACE(sizeof(uint32_t))];
	struct sockaddr_in here = address(arg[0], arg[1]);
	size_t bytes = (size_t)atoi(arg[2]);
	struct window w = { .from = strtoull(arg[3], NULL, 10), .to = strtoull(arg[4], NULL, 10) };
	struct mmsghdr messages[BATCH] = { 0 };
	struct iovec iov[BATCH];
	int fd = open_socket(), one = 1;
	uint64_t at;

	if (bytes > BYTES_MAX)
		return 2;
	enlarge_buffer(fd);
	fill(payload);
	for (int i = 0; i < BATCH; i++) {
		iov[i] = (struct iovec){ memory[i], sizeof(memory[i]) };
		messages[i].msg_hdr.msg_iov = &iov[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	if (setsockopt(fd, SOL_SOCKET, SO_RXQ_OVFL, &one, sizeof(one)) < 0)
		die("setsockopt");
	if (bind(fd, (struct sockaddr *)&here, sizeof(here)) < 0)
		die("bind");
	printf("ready\n");
	fflush(stdout);
	while ((at = now()) < w.to + GRACE_NS) {
		int n;

		for (int i = 0; i < BATCH; i++) {
			messages[i].msg_hdr.msg_control = control[i];
			messages[i].msg_hdr.msg_controllen = sizeof(control[i]);
		}
		n = recvmmsg(fd, messages, BATCH, MSG_DONTWAIT, NULL);
		if (n < 0 && errno != EAGAIN && errno != EINTR)
			die("recvmmsg");
		if (n <= 0) {
			/* A receiver that sleeps in recvmmsg would be woken for every packet or
			 * two, at the cost of whoever delivers it: of the sender's machine. */
			sleep_until(now() + TICK_NS);
			continue;
		}
		note_overflows(&w, &messages[n - 1].msg_hdr);
		at = now();
		for (int i = 0; i < n; i++) {
			if (is_good(&messages[i], payload, bytes))
				count(&w, at, 1);
			else
				w.bad++;
		}
	}
	return print(&w);
}

int main(int argc, char **argv)
{
	if (argc == 9 && !strcmp(argv[1], "send"))
		return run_sender(argv + 2);
	if (argc == 7 && !strcmp(argv[1], "recv"))
		return run_receiver(argv + 2);
	fprintf(stderr, "usage: load send ADDRESS PORT BYTES FLOWS RATE FROM_NS TO_NS\n"
			"       load recv ADDRESS PORT BYTES FROM_NS TO_NS\n");
	return 2;
}
