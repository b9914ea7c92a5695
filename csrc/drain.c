/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "drain.h"

#include "nfqmsg.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>

enum {
	BATCH = 64,
	/* A whole packet and its attributes. The odd number of cache lines keeps the first lines of
	 * all slots from mapping to the same cache set. */
	SLOT_BYTES = 65536 + 4096 + 3 * 64,
	VECTORS = 2 * BATCH,
	CONFIGURE_SECONDS = 2,
};

enum configuration { UNCONFIGURED, CONFIGURING, CONFIGURED };

/**
 * struct outbox - verdicts that will be sent together
 * @vectors, @count: the verdicts
 * @bytes:          sum of their lengths
 * @accepts:        memory of the batch verdicts among them
 * @accept_pending: the packets up to @last_id still need a batch verdict
 * @last_id:        newest packet that has been judged
 */
struct outbox {
	struct iovec vectors[VECTORS];
	size_t count;
	size_t bytes;
	_Alignas(4) uint8_t accepts[VECTORS][NFQMSG_ACCEPT_LEN];
	bool accept_pending;
	uint32_t last_id;
};

const uint32_t drain_batch_bounds[] = { 1, 2, 4, 8, 16, 32, BATCH };

const uint32_t drain_wait_bounds[] = {
	10,   20,    50,    100,   200,    500,    1000,   2000,
	5000, 10000, 20000, 50000, 100000, 200000, 500000, 1000000,
};

/* drain_get_stats() copies the struct as an array. */
_Static_assert(sizeof(struct drain_stats) ==
		   sizeof(uint64_t) * (3 + (DRAIN_BATCH_BOUNDS + 1) + (DRAIN_WAIT_BOUNDS + 1) + 1 +
				       REPAIR_REASONS + 7 + 4 * (DRAIN_PORTS + 1)),
	       "counters of 64 bits, and nothing else");

/**
 * struct drain - see drain.h
 * @probes:      probes sent, by any thread
 * @policy:      the policy in use; only the thread of drain_run() touches it
 * @next_policy: the last one given to drain_set_policy(); under @policy_lock
 * @policy_is_new: @next_policy has not been copied to @policy yet; written under @policy_lock
 */
struct drain {
	int fd;
	uint16_t queue;
	size_t send_limit;
	struct repair_policy policy;
	struct repair_policy next_policy;
	pthread_mutex_t policy_lock;
	bool policy_is_new;
	bool stop;
	enum configuration configuration;
	int error;
	uint64_t probes;
	struct drain_stats stats;
	struct outbox out;
	struct mmsghdr in[BATCH];
	struct iovec slots[BATCH];
	_Alignas(64) uint8_t memory[BATCH][SLOT_BYTES];
};

/* Each counter has one writer; other threads read it. */
static void count(uint64_t *counter, uint64_t n)
{
	__atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}

/* Counts in the first bucket whose bound is not below @value; the last has no bound. */
static void count_in_bucket(uint64_t *buckets, const uint32_t *bounds, size_t n, uint64_t value)
{
	size_t i = 0;

	while (i < n && value > bounds[i])
		i++;
	count(&buckets[i], 1);
}

struct drain *drain_new(int fd, uint16_t queue, const struct repair_policy *policy)
{
	struct drain *d = aligned_alloc(_Alignof(struct drain), sizeof(*d));

	if (!d)
		return NULL;
	memset(d, 0, offsetof(struct drain, memory));
	d->fd = fd;
	d->queue = queue;
	d->policy = *policy;
	pthread_mutex_init(&d->policy_lock, NULL);
	d->send_limit = SLOT_BYTES;
	for (int i = 0; i < BATCH; i++) {
		d->slots[i] = (struct iovec){ d->memory[i], SLOT_BYTES };
		d->in[i].msg_hdr.msg_iov = &d->slots[i];
		d->in[i].msg_hdr.msg_iovlen = 1;
	}
	return d;
}

void drain_free(struct drain *d)
{
	if (d)
		pthread_mutex_destroy(&d->policy_lock);
	free(d);
}

static int send_vectors(struct drain *d)
{
	struct msghdr message = { .msg_iov = d->out.vectors, .msg_iovlen = d->out.count };
	ssize_t sent;

	do
		sent = sendmsg(d->fd, &message, 0);
	while (sent < 0 && errno == EINTR);
	count(&d->stats.sends, 1);
	return sent < 0 ? -errno : 0;
}

static void push(struct outbox *out, uint8_t *start, size_t len)
{
	out->vectors[out->count++] = (struct iovec){ start, len };
	out->bytes += len;
}

/* Adds the batch verdict for the packets that still need one. */
static void push_accept(struct drain *d)
{
	struct outbox *out = &d->out;
	uint8_t *verdict = out->accepts[out->count];

	if (!out->accept_pending)
		return;
	nfqmsg_accept_until(verdict, d->queue, out->last_id);
	push(out, verdict, NFQMSG_ACCEPT_LEN);
	out->accept_pending = false;
}

/*
 * Answers every packet judged so far. If the kernel refuses the message, all of them are accepted
 * unrepaired: it would be worse to hold them back.
 */
static void flush(struct drain *d)
{
	struct outbox *out = &d->out;

	push_accept(d);
	if (!out->count)
		return;
	if (send_vectors(d) < 0) {
		count(&d->stats.send_errors, 1);
		out->count = 0;
		out->accept_pending = true;
		push_accept(d);
		if (send_vectors(d) < 0)
			count(&d->stats.send_errors, 1);
	}
	out->count = 0;
	out->bytes = 0;
}

/* Adds a verdict with payload, after the batch verdict for the packets before it. */
static void push_replacement(struct drain *d, const struct nfqmsg *msg)
{
	struct outbox *out = &d->out;
	uint8_t *verdict;
	size_t len;

	push_accept(d);
	if (out->count + 2 > VECTORS || out->bytes + msg->caplen > d->send_limit)
		flush(d);
	verdict = nfqmsg_replace(msg, d->queue, &len);
	push(out, verdict, len);
}

/* The slot that counts @port; the last one if no other is free. */
static struct drain_port_stats *port_slot(struct drain *d, uint16_t port)
{
	struct drain_port_stats *slot = d->stats.ports;

	for (int i = 0; i < DRAIN_PORTS; i++, slot++) {
		if (slot->port == port)
			return slot;
		if (!slot->port) {
			count(&slot->port, port);
			return slot;
		}
	}
	return slot;
}

static void count_for_port(struct drain *d, struct repair_result result)
{
	struct drain_port_stats *slot = port_slot(d, result.port);
	enum repair_outcome outcome = repair_outcome(result.reason);

	count(&slot->packets, 1);
	if (outcome == REPAIR_REPAIRED)
		count(&slot->repaired, 1);
	if (outcome == REPAIR_LEFT_WRONG)
		count(&slot->left_wrong, 1);
}

static void on_packet(struct drain *d, const struct nfqmsg *msg)
{
	struct repair_result result = repair(msg->payload, msg->caplen, msg->wirelen, msg->partial,
					     nfqmsg_replaceable(msg), &d->policy);

	count(&d->stats.packets, 1);
	count(&d->stats.bytes, msg->wirelen);
	count(&d->stats.reasons[result.reason], 1);
	if (result.port)
		count_for_port(d, result);
	if (result.verdict == REPAIR_REPLACE)
		push_replacement(d, msg);
	else
		d->out.accept_pending = true;
	d->out.last_id = msg->id;
}

/* Wraps around after 71 minutes; only differences of two such times are used. */
static uint32_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint32_t)((uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000);
}

/* Flush first: a packet queued in the probe's place would have had its verdict sent by now. */
static void on_probe(struct drain *d, uint32_t sent)
{
	uint32_t wait;

	flush(d);
	wait = now_us() - sent;
	count(&d->stats.wait_us, wait);
	count_in_bucket(d->stats.waits, drain_wait_bounds, DRAIN_WAIT_BOUNDS, wait);
}

static void on_status(struct drain *d, const struct nfqmsg *msg)
{
	if (nfqmsg_is_params(msg->request) && d->configuration == CONFIGURING) {
		d->configuration = CONFIGURED;
		d->error = msg->error;
	} else if (nfqmsg_is_noop(msg->request)) {
		on_probe(d, msg->sequence);
	} else if (nfqmsg_is_verdict(msg->request) && msg->error) {
		count(&d->stats.verdict_errors, 1);
		if (msg->error == -ENODEV || msg->error == -EPERM)
			d->error = msg->error;
	}
}

static void on_datagram(struct drain *d, uint8_t *data, size_t len)
{
	struct nfqmsg msg;
	size_t at = 0;

	while (nfqmsg_next(data, len, &at, &msg)) {
		switch (msg.kind) {
		case NFQMSG_PACKET:
			on_packet(d, &msg);
			break;
		case NFQMSG_STATUS:
			on_status(d, &msg);
			break;
		case NFQMSG_OTHER:
			count(&d->stats.unexpected, 1);
			break;
		case NFQMSG_MALFORMED:
			count(&d->stats.malformed, 1);
			break;
		}
	}
}

/* Returns the number of datagrams received, 0 to try again, or a negative errno. */
static int receive(struct drain *d)
{
	int n = recvmmsg(d->fd, d->in, BATCH, MSG_WAITFORONE, NULL);

	if (n >= 0)
		return n;
	switch (errno) {
	case EINTR:
		count(&d->stats.interrupts, 1);
		return 0;
	case ENOBUFS: /* counted exactly in overruns() */
		return 0;
	default:
		return -errno;
	}
}

static void count_batch(struct drain *d, uint64_t packets)
{
	if (packets)
		count_in_bucket(d->stats.batch_sizes, drain_batch_bounds, DRAIN_BATCH_BOUNDS,
				packets);
}

static void take_new_policy(struct drain *d)
{
	if (!__atomic_load_n(&d->policy_is_new, __ATOMIC_ACQUIRE))
		return;
	pthread_mutex_lock(&d->policy_lock);
	d->policy = d->next_policy;
	__atomic_store_n(&d->policy_is_new, false, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&d->policy_lock);
}

/* Receives, judges and answers one batch. Returns 0 or a negative errno. */
static int handle_batch(struct drain *d)
{
	uint64_t before = d->stats.packets;
	int n = receive(d);

	if (n < 0)
		return n;
	if (n > 0)
		count(&d->stats.batches, 1);
	take_new_policy(d);
	for (int i = 0; i < n; i++)
		on_datagram(d, d->memory[i], d->in[i].msg_len);
	count_batch(d, d->stats.packets - before);
	flush(d);
	return d->error;
}

/* Without CAP_NET_ADMIN, net.core.rmem_max and wmem_max are the limit (socket(7)). */
static void set_buffer(int fd, int forced, int limited, int bytes)
{
	if (setsockopt(fd, SOL_SOCKET, forced, &bytes, sizeof(bytes)) < 0)
		(void)setsockopt(fd, SOL_SOCKET, limited, &bytes, sizeof(bytes));
}

static void set_receive_timeout(int fd, time_t seconds)
{
	struct timeval timeout = { .tv_sec = seconds };

	(void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
}

/* netlink_sendmsg() refuses messages longer than the send buffer less 32 bytes
 * (net/netlink/af_netlink.c). Half of the buffer is well below. */
static size_t send_limit(int fd)
{
	int bytes = 0;
	socklen_t len = sizeof(bytes);

	if (getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, &len) < 0 || bytes < 4 * SLOT_BYTES)
		return SLOT_BYTES;
	return (size_t)bytes / 2;
}

static int await_configuration(struct drain *d)
{
	while (d->configuration == CONFIGURING) {
		int error = handle_batch(d);

		if (error)
			return error == -EAGAIN ? -ETIMEDOUT : error;
	}
	return 0;
}

int drain_configure(struct drain *d, int socket_bytes, uint32_t copy_range)
{
	/* A socket connected to the kernel receives no messages from other processes. */
	const struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
	_Alignas(4) uint8_t request[NFQMSG_PARAMS_LEN];
	const int on = 1;
	int error;

	if (connect(d->fd, (const struct sockaddr *)&kernel, sizeof(kernel)) < 0)
		return -errno;
	/* Without this, one overrun sets NETLINK_S_CONGESTED, and the kernel delivers nothing until
	 * the buffer is empty (netlink_overrun() in net/netlink/af_netlink.c). */
	(void)setsockopt(d->fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, &on, sizeof(on));
	set_buffer(d->fd, SO_RCVBUFFORCE, SO_RCVBUF, socket_bytes);
	set_buffer(d->fd, SO_SNDBUFFORCE, SO_SNDBUF, socket_bytes);
	d->send_limit = send_limit(d->fd);
	nfqmsg_params(request, d->queue, copy_range);
	d->configuration = CONFIGURING;
	if (send(d->fd, request, sizeof(request), 0) < 0)
		return -errno;
	set_receive_timeout(d->fd, CONFIGURE_SECONDS);
	error = await_configuration(d);
	set_receive_timeout(d->fd, 0);
	return error;
}

int drain_run(struct drain *d)
{
	int error = 0;

	while (!error && !__atomic_load_n(&d->stop, __ATOMIC_ACQUIRE))
		error = handle_batch(d);
	return error;
}

void drain_stop(struct drain *d)
{
	__atomic_store_n(&d->stop, true, __ATOMIC_RELEASE);
	/* If there is no buffer for the probe, packets are waiting and the drain is awake. */
	drain_probe(d);
}

void drain_probe(struct drain *d)
{
	_Alignas(4) uint8_t probe[NFQMSG_NOOP_LEN];

	nfqmsg_noop(probe, now_us());
	__atomic_fetch_add(&d->probes, 1, __ATOMIC_SEQ_CST);
	if (send(d->fd, probe, sizeof(probe), MSG_DONTWAIT) < 0)
		__atomic_fetch_sub(&d->probes, 1, __ATOMIC_SEQ_CST);
}

void drain_set_policy(struct drain *d, const struct repair_policy *policy)
{
	pthread_mutex_lock(&d->policy_lock);
	d->next_policy = *policy;
	__atomic_store_n(&d->policy_is_new, true, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&d->policy_lock);
}

/* Messages that the kernel could not put into the socket's buffer. */
static uint64_t kernel_drops(int fd)
{
	uint32_t memory[SK_MEMINFO_VARS] = { 0 };
	socklen_t len = sizeof(memory);

	if (getsockopt(fd, SOL_SOCKET, SO_MEMINFO, memory, &len) < 0)
		return 0;
	return memory[SK_MEMINFO_DROPS];
}

/*
 * The kernel's drops, less the acknowledgements of probes among them. An acknowledgement that is
 * still in the buffer counts as lost, which makes the result too low until it is read. So this
 * returns the highest result so far. @arrived must be read before the drops, and the drops before
 * the number of probes.
 */
static uint64_t overruns(struct drain *d, uint64_t arrived)
{
	uint64_t all = kernel_drops(d->fd) + arrived;
	uint64_t probes = __atomic_load_n(&d->probes, __ATOMIC_SEQ_CST);
	uint64_t highest = __atomic_load_n(&d->stats.overruns, __ATOMIC_RELAXED);

	while (all > probes && all - probes > highest) {
		if (__atomic_compare_exchange_n(&d->stats.overruns, &highest, all - probes, false,
						__ATOMIC_RELAXED, __ATOMIC_RELAXED))
			return all - probes;
	}
	return highest;
}

void drain_get_stats(struct drain *d, struct drain_stats *stats)
{
	const uint64_t *from = (const uint64_t *)&d->stats;
	uint64_t *to = (uint64_t *)stats, probes_arrived = 0;

	for (size_t i = 0; i < sizeof(*stats) / sizeof(*to); i++)
		to[i] = __atomic_load_n(&from[i], __ATOMIC_ACQUIRE);
	for (size_t i = 0; i <= DRAIN_WAIT_BOUNDS; i++)
		probes_arrived += stats->waits[i];
	stats->overruns = overruns(d, probes_arrived);
}
