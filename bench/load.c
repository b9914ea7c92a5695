/* SPDX-License-Identifier: MIT */
/*
 * load - UDP sender and receiver of the benchmark
 *
 *     load send ADDRESS PORT BYTES FLOWS RATE SEGMENTS FROM TO
 *     load recv ADDRESS PORT BYTES FROM TO
 *
 * BYTES is the payload of each datagram. RATE is in packets per second over all flows, 0 for as
 * many as possible. With SEGMENTS above 1, every other message is a GSO packet of that many
 * datagrams and the others are single datagrams, as QUIC senders do it. FROM and TO are nanoseconds
 * of CLOCK_MONOTONIC. Both programs work from their start until TO, and count separately what
 * happens between FROM and TO. At its end each prints
 *
 *     WINDOW_PACKETS TOTAL_PACKETS BAD_PACKETS OVERFLOWS LATE_PACKETS
 *
 * The last three are the receiver's. Bad packets have a wrong length or content, and are not
 * counted elsewhere. Overflows are datagrams that the kernel dropped because the receiver's buffer
 * was full. Late packets arrived in the window after a later packet of their flow.
 *
 * Each flow is one connected socket with one inner source port, hence one outer source port.
 */
#define _GNU_SOURCE
#include <netinet/udp.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <unistd.h>

#include "load.h"

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif

enum {
	BATCH = 32,
	FLOWS_MAX = 64,
	BYTES_MAX = 9000,
	SEGMENTS_MAX = 16,
	BUFFER_BYTES = 64 << 20,
};

/* Interval at which paced packets are sent, and at which the receiver reads its socket. */
static const uint64_t TICK_NS = 1000 * 1000;

/* The beginning of each datagram. */
struct stamp {
	uint32_t flow, number;
};

struct sender {
	struct sockaddr_in to;
	size_t bytes;
	unsigned flows, segments;
	int fd[FLOWS_MAX];
	uint32_t sent[FLOWS_MAX];
	struct mmsghdr messages[BATCH];
	struct iovec iov[BATCH];
};

static int open_socket(void)
{
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	if (fd < 0)
		die("socket");
	return fd;
}

/* Large enough for many ticks of the receiver; the sender keeps the default. */
static void enlarge_buffer(int fd)
{
	int bytes = BUFFER_BYTES;

	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes)) < 0)
		(void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
}

static void open_flows(struct sender *s)
{
	int bytes = (int)s->bytes;

	for (unsigned i = 0; i < s->flows; i++) {
		s->fd[i] = open_socket();
		if (connect(s->fd[i], (struct sockaddr *)&s->to, sizeof(s->to)) < 0)
			die("connect");
		if (s->segments > 1 &&
		    setsockopt(s->fd[i], IPPROTO_UDP, UDP_SEGMENT, &bytes, sizeof(bytes)) < 0)
			die("UDP_SEGMENT");
	}
}

static unsigned segments_of(const struct sender *s, unsigned message)
{
	return message % 2 ? 1 : s->segments;
}

static void prepare_messages(struct sender *s)
{
	static uint8_t memory[BATCH * SEGMENTS_MAX * BYTES_MAX];
	uint8_t *next = memory;

	for (unsigned i = 0; i < BATCH; i++) {
		size_t segments = segments_of(s, i);

		s->iov[i] = (struct iovec){ next, segments * s->bytes };
		s->messages[i].msg_hdr.msg_iov = &s->iov[i];
		s->messages[i].msg_hdr.msg_iovlen = 1;
		for (size_t k = 0; k < segments; k++, next += s->bytes)
			fill(next, s->bytes);
	}
}

/* Numbers all datagrams of the first n messages; returns how many there are. */
static unsigned stamp(struct sender *s, unsigned flow, unsigned n)
{
	unsigned packets = 0;

	for (unsigned i = 0; i < n; i++) {
		uint8_t *at = s->iov[i].iov_base;

		for (unsigned k = 0; k < segments_of(s, i); k++, packets++, at += s->bytes) {
			struct stamp mark = { flow, s->sent[flow] + packets };

			memcpy(at, &mark, sizeof(mark));
		}
	}
	s->sent[flow] += packets;
	return packets;
}

static unsigned transmit(struct sender *s, unsigned flow, unsigned n)
{
	unsigned packets = stamp(s, flow, n);
	int sent = sendmmsg(s->fd[flow], s->messages, n, 0);

	/* A full device queue or an ICMP error is no failure: the receiver counts what arrives. */
	for (unsigned i = sent < 0 ? 0 : (unsigned)sent; i < n; i++)
		packets -= segments_of(s, i);
	return packets;
}

static void send_until(struct sender *s, struct window *w, double rate)
{
	uint64_t start = now(), due = start, owed = 0, given = 0, at;
	unsigned flow = 0;

	while ((at = now()) < w->to) {
		unsigned n = s->flows > 1 ? BATCH / 4 : BATCH;

		if (rate > 0) {
			owed = (uint64_t)((double)(at - start) * rate / 1e9);
			if (given >= owed) {
				due += TICK_NS;
				sleep_until(due);
				continue;
			}
			n = (unsigned)(owed - given < n ? owed - given : n);
			if (s->flows > 1)
				n = 1;
			given += n;
		}
		count(w, at, transmit(s, flow, n));
		flow = (flow + 1) % s->flows;
	}
}

static int run_sender(char **arg)
{
	static struct sender s;
	struct window w = window_of(arg + 6);

	s.to = address(arg[0], arg[1]);
	s.bytes = (size_t)atoi(arg[2]);
	s.flows = (unsigned)atoi(arg[3]);
	s.segments = (unsigned)atoi(arg[5]);
	if (s.flows < 1 || s.flows > FLOWS_MAX || s.segments < 1 || s.segments > SEGMENTS_MAX ||
	    s.bytes < sizeof(struct stamp) || s.bytes > BYTES_MAX)
		return 2;
	open_flows(&s);
	prepare_messages(&s);
	send_until(&s, &w, atof(arg[4]));
	return print(&w);
}

struct receiver {
	size_t bytes;
	uint8_t expected[BYTES_MAX];
	uint32_t highest[FLOWS_MAX];
	struct window window;
};

static bool is_good(const struct receiver *r, const struct mmsghdr *m, struct stamp *mark)
{
	const uint8_t *got = m->msg_hdr.msg_iov->iov_base;

	if (m->msg_len != r->bytes)
		return false;
	memcpy(mark, got, sizeof(*mark));
	return mark->flow < FLOWS_MAX &&
	       !memcmp(got + sizeof(*mark), r->expected + sizeof(*mark), r->bytes - sizeof(*mark));
}

static void judge(struct receiver *r, const struct mmsghdr *m, uint64_t at)
{
	struct stamp mark;

	if (!is_good(r, m, &mark)) {
		r->window.bad++;
		return;
	}
	count(&r->window, at, 1);
	if (mark.number >= r->highest[mark.flow])
		r->highest[mark.flow] = mark.number;
	else if (is_inside(&r->window, at))
		r->window.late++;
}

/* The kernel attaches the number of dropped datagrams to each delivered one (SO_RXQ_OVFL). */
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

static int bind_receiver(struct sockaddr_in here)
{
	int fd = open_socket(), one = 1;

	enlarge_buffer(fd);
	if (setsockopt(fd, SOL_SOCKET, SO_RXQ_OVFL, &one, sizeof(one)) < 0)
		die("setsockopt");
	if (bind(fd, (struct sockaddr *)&here, sizeof(here)) < 0)
		die("bind");
	return fd;
}

/* Receives waiting messages without blocking; returns their number. */
static int receive(int fd, struct mmsghdr *messages)
{
	static uint8_t memory[BATCH][BYTES_MAX + 1];
	static uint8_t control[BATCH][CMSG_SPACE(sizeof(uint32_t))];
	static struct iovec iov[BATCH];
	int n;

	for (int i = 0; i < BATCH; i++) {
		struct msghdr *header = &messages[i].msg_hdr;

		iov[i] = (struct iovec){ memory[i], sizeof(memory[i]) };
		*header = (struct msghdr){ .msg_iov = &iov[i], .msg_iovlen = 1 };
		header->msg_control = control[i];
		header->msg_controllen = sizeof(control[i]);
	}
	n = recvmmsg(fd, messages, BATCH, MSG_DONTWAIT, NULL);
	if (n < 0 && errno != EAGAIN && errno != EINTR)
		die("recvmmsg");
	return n < 0 ? 0 : n;
}

static int run_receiver(char **arg)
{
	static struct receiver r;
	struct mmsghdr messages[BATCH] = { 0 };
	int fd;

	r.bytes = (size_t)atoi(arg[2]);
	r.window = window_of(arg + 3);
	if (r.bytes < sizeof(struct stamp) || r.bytes > BYTES_MAX)
		return 2;
	fill(r.expected, sizeof(r.expected));
	fd = bind_receiver(address(arg[0], arg[1]));
	say_ready();
	while (now() < r.window.to + GRACE_NS) {
		int n = receive(fd, messages);
		uint64_t at = now();

		if (n == 0) {
			/* A receiver that sleeps in recvmmsg is woken for every packet or two, and
			 * the core that delivers the packet, here the sender's, pays for that. */
			sleep_until(at + TICK_NS);
			continue;
		}
		note_overflows(&r.window, &messages[n - 1].msg_hdr);
		for (int i = 0; i < n; i++)
			judge(&r, &messages[i], at);
	}
	return print(&r.window);
}

int main(int argc, char **argv)
{
	if (argc == 10 && !strcmp(argv[1], "send"))
		return run_sender(argv + 2);
	if (argc == 7 && !strcmp(argv[1], "recv"))
		return run_receiver(argv + 2);
	fprintf(stderr, "usage: load send ADDRESS PORT BYTES FLOWS RATE SEGMENTS FROM_NS TO_NS\n"
			"       load recv ADDRESS PORT BYTES FROM_NS TO_NS\n");
	return 2;
}
