/* SPDX-License-Identifier: MIT */
#ifndef CSUMFIX_DRAIN_H
#define CSUMFIX_DRAIN_H

#include "repair.h"

/*
 * Theory of operation
 *
 * A drain empties one netfilter queue. It receives queued packets in batches, passes each one to
 * repair(), and answers the whole batch with one send. It owns neither the queue nor the socket:
 * the caller binds the queue, and closes the socket when drain_run() has returned.
 *
 * Order. Verdicts leave in the order of arrival. Consecutive packets that need no repair are
 * answered by one batch verdict, "accept all up to this id". Each repaired packet is answered by a
 * verdict with its payload. A batch verdict also accepts every unanswered packet before it
 * (nfqnl_recv_verdict_batch() in net/netfilter/nfnetlink_queue.c), so the verdicts of the repaired
 * packets before it must be sent first.
 *
 * Probes. A probe is a no-op request with NLM_F_ACK. The kernel appends the acknowledgement to the
 * socket's receive queue, behind the packets already there (netlink_ack() in
 * net/netlink/af_netlink.c). So the time until the drain reads it is the time that a packet queued
 * now would have waited. The acknowledgement carries the time of sending, so the threads share
 * only two counters of probes.
 *
 * Waking. drain_run() sleeps in recvmmsg(). drain_stop() sets a flag and then sends a probe, whose
 * acknowledgement ends the sleep. In the opposite order, the drain could read the acknowledgement,
 * find the flag unset, and sleep again. No second descriptor has to be polled for every batch.
 *
 * Threads. drain_run() belongs to one thread. drain_stop(), drain_probe(), drain_get_stats() and
 * drain_set_policy() may be called from any other while it runs.
 *
 * Policy. The drain keeps two copies: one that only its thread touches, and one that
 * drain_set_policy() writes under a lock. The thread copies a new policy when it has received a
 * batch, so packets queued after drain_set_policy() has returned are judged by it.
 */

struct drain;

enum { DRAIN_COPY_WHOLE = 0xffff }; /* a copy range that cuts off nothing */

/* Numbers of bounds of the histograms in struct drain_stats. Each has one more bucket, above the
 * last bound. */
enum { DRAIN_BATCH_BOUNDS = 7, DRAIN_WAIT_BOUNDS = 16 };

/** drain_batch_bounds - upper bounds of the batch sizes, in packets */
extern const uint32_t drain_batch_bounds[DRAIN_BATCH_BOUNDS];

/** drain_wait_bounds - upper bounds of the waits, in microseconds */
extern const uint32_t drain_wait_bounds[DRAIN_WAIT_BOUNDS];

/* Ports that struct drain_stats counts one by one. One more slot counts all others. */
enum { DRAIN_PORTS = 64 };

/**
 * struct drain_port_stats - the packets to one of the policy's ports
 * @port:       host order; 0 in an unused slot, and in the last one
 * @packets:    packets whose UDP header could be read
 * @repaired:   of these, packets whose outcome is REPAIR_REPAIRED
 * @left_wrong: of these, packets whose outcome is REPAIR_LEFT_WRONG
 */
struct drain_port_stats {
	uint64_t port;
	uint64_t packets;
	uint64_t repaired;
	uint64_t left_wrong;
};

/**
 * struct drain_stats - counters of a drain since drain_new()
 * @packets:        queued packets received
 * @bytes:          their bytes on the wire, from the outer IP header on
 * @batches:        receive calls that returned at least one message
 * @batch_sizes:    receive calls that returned packets, by number of packets
 * @waits:          probes by the time until the drain read their acknowledgement
 * @wait_us:        sum of these times, in microseconds
 * @reasons:        packets by enum repair_reason; they add up to @packets
 * @sends:          send calls with verdicts
 * @send_errors:    send calls that the kernel refused
 * @verdict_errors: single verdicts that the kernel refused
 * @overruns:       packets that the kernel accepted unrepaired (fail-open), because the socket's
 *                  buffer was full. Packets that pass because the queue is full are not counted
 *                  anywhere
 * @interrupts:     receive calls that a signal interrupted
 * @malformed:      messages from the kernel that could not be decoded
 * @unexpected:     well-formed messages of other types
 * @ports:          packets by port, in the order in which the ports were first seen. The last slot
 *                  counts packets to ports that found no free slot
 *
 * Every member consists of uint64_t, because drain_get_stats() copies the struct as an array.
 */
struct drain_stats {
	uint64_t packets;
	uint64_t bytes;
	uint64_t batches;
	uint64_t batch_sizes[DRAIN_BATCH_BOUNDS + 1];
	uint64_t waits[DRAIN_WAIT_BOUNDS + 1];
	uint64_t wait_us;
	uint64_t reasons[REPAIR_REASONS];
	uint64_t sends;
	uint64_t send_errors;
	uint64_t verdict_errors;
	uint64_t overruns;
	uint64_t interrupts;
	uint64_t malformed;
	uint64_t unexpected;
	struct drain_port_stats ports[DRAIN_PORTS + 1];
};

/**
 * drain_new() - make a drain for a bound queue
 * @fd:     blocking netlink socket that the queue is bound to
 * @queue:  its number
 * @policy: what to repair; copied
 *
 * Return: the drain, with all memory it will ever use, or NULL if there is not enough.
 */
struct drain *drain_new(int fd, uint16_t queue, const struct repair_policy *policy);

/** drain_free() - give back the memory; drain_run() must have returned */
void drain_free(struct drain *d);

/**
 * drain_configure() - set copy range, fail-open and socket buffers of the queue
 * @d:            the drain
 * @socket_bytes: socket buffer in each direction; less if the process lacks CAP_NET_ADMIN
 * @copy_range:   bytes of each packet to copy; longer packets are accepted unrepaired
 *
 * Packets that arrive during the call are answered as in drain_run(). A drain whose configuration
 * failed can only be freed.
 *
 * Return: 0, or a negative errno: the kernel's answer, or -ETIMEDOUT if there was none.
 */
int drain_configure(struct drain *d, int socket_bytes, uint32_t copy_range);

/**
 * drain_run() - receive, repair and answer until drain_stop()
 *
 * Return: 0 after drain_stop(), or a negative errno: -ENODEV if the queue is gone, -EPERM if it
 * belongs to another socket now, the socket's error otherwise.
 */
int drain_run(struct drain *d);

/** drain_stop() - make drain_run() return when it has answered the current batch */
void drain_stop(struct drain *d);

/**
 * drain_probe() - measure how long a packet that is queued now waits for its verdict
 *
 * The result appears in struct drain_stats. The socket given to drain_new() must still be open.
 */
void drain_probe(struct drain *d);

/** drain_set_policy() - use a copy of @policy from the next batch on */
void drain_set_policy(struct drain *d, const struct repair_policy *policy);

/** drain_get_stats() - copy the counters; each one is consistent in itself */
void drain_get_stats(struct drain *d, struct drain_stats *stats);

#endif
