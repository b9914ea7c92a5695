/* SPDX-License-Identifier: MIT */
#ifndef CSUMFIX_DRAIN_H
#define CSUMFIX_DRAIN_H

#include "repair.h"

/*
 * Theory of operation
 *
 * A drain empties one netfilter queue: it receives queued packets in batches, has each one
 * judged by repair(), and answers the whole batch with one send. It owns neither the queue nor
 * the socket: somebody else bound the queue and closes the socket when the drain has returned.
 *
 * Order. Verdicts leave in the order of arrival. A run of packets that are fine as they are is
 * answered by one batch verdict, "accept all up to this id"; a repaired packet by a verdict with
 * payload. A batch verdict may only be sent when every repaired packet before it has been
 * answered, or the kernel would let those go unrepaired.
 *
 * Probes. A probe is a message to the kernel that does nothing but be acknowledged. The kernel
 * puts the acknowledgement into the socket's buffer at once, behind the packets that wait there,
 * and the drain meets it in its turn: so it waits as a packet would that is queued at that moment.
 * It carries the time at which it was sent; no state is shared but two counters.
 *
 * Waking. drain_run() sleeps in recvmmsg(). drain_stop() sets a flag and then sends a probe, whose
 * acknowledgement ends the sleep. Setting the flag first closes the race; no second descriptor
 * has to be polled for every batch.
 *
 * Threads. drain_run() belongs to one thread. drain_stop(), drain_probe(), drain_get_stats() and
 * drain_set_policy() may be called from any other while it runs.
 *
 * Policy. The drain keeps two copies: one that only its thread touches, and one that
 * drain_set_policy() writes under a lock. The thread takes the new one over when it has received a
 * batch, so that packets that were queued after drain_set_policy() returned are judged by it.
 */

struct drain;

enum { DRAIN_COPY_WHOLE = 0xffff }; /* a copy range that cuts off nothing */

/* How many bounds the histograms in struct drain_stats have; what is above the last counts, too. */
enum { DRAIN_BATCH_BOUNDS = 7, DRAIN_WAIT_BOUNDS = 16 };

/** drain_batch_bounds - upper bounds of the batch sizes, in packets */
extern const uint32_t drain_batch_bounds[DRAIN_BATCH_BOUNDS];

/** drain_wait_bounds - upper bounds of the waits, in microseconds */
extern const uint32_t drain_wait_bounds[DRAIN_WAIT_BOUNDS];

/* How many ports struct drain_stats counts by name; one slot more is for all others. */
enum { DRAIN_PORTS = 64 };

/**
 * struct drain_port_stats - the packets to one of the policy's ports
 * @port:       host order; 0 in an unused slot, and in the last one
 * @packets:    those whose UDP header could be read
 * @repaired:   of those, the ones whose outcome is REPAIR_REPAIRED
 * @left_wrong: of those, the ones whose outcome is REPAIR_LEFT_WRONG
 */
struct drain_port_stats {
	uint64_t port;
	uint64_t packets;
	uint64_t repaired;
	uint64_t left_wrong;
};

/**
 * struct drain_stats - what a drain has done since it was made
 * @packets:        queued packets received
 * @bytes:          their bytes, as they are on the wire
 * @batches:        receive calls that brought at least one message
 * @batch_sizes:    receive calls that brought packets, by how many
 * @waits:          probes by how long they waited for their turn
 * @wait_us:        how long they all waited, in microseconds
 * @reasons:        packets by enum repair_reason; they add up to @packets
 * @sends:          send calls with verdicts
 * @send_errors:    of those, refused by the kernel
 * @verdict_errors: verdicts that the kernel refused one by one
 * @overruns:       packets that the kernel accepted unrepaired (fail-open), because the socket's
 *                  buffer was full; what a full queue lets through is not counted anywhere
 * @interrupts:     receive calls ended by a signal
 * @malformed:      messages from the kernel that made no sense
 * @unexpected:     well-formed messages that were not for us
 * @ports:          packets by port, in the order in which the ports were first seen; the last slot
 *                  counts the packets to ports that came when all others were taken
 *
 * Each member is made of uint64_t alone: drain_get_stats() copies them one by one.
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
 * drain_configure() - have the queue copy packets and accept what does not fit
 * @d:            the drain
 * @socket_bytes: how much the socket may buffer in each direction; less if not permitted
 * @copy_range:   bytes of each packet to copy; longer ones are accepted as they are
 *
 * Packets that arrive meanwhile are answered as in drain_run(). A drain that could not be
 * configured is of no further use.
 *
 * Return: 0, or a negative errno: what the kernel answered, -ETIMEDOUT if it did not.
 */
int drain_configure(struct drain *d, int socket_bytes, uint32_t copy_range);

/**
 * drain_run() - receive, repair and answer until drain_stop()
 *
 * Return: 0 after drain_stop(). A negative errno if the socket fails; -ENODEV if the queue is
 * gone, -EPERM if it now belongs to somebody else.
 */
int drain_run(struct drain *d);

/** drain_stop() - make drain_run() return after the batch that it is working on */
void drain_stop(struct drain *d);

/**
 * drain_probe() - measure how long a packet that is queued now waits for its verdict
 *
 * The result appears in struct drain_stats. drain_run() must not have returned for long: @fd has to
 * be the socket still.
 */
void drain_probe(struct drain *d);

/** drain_set_policy() - use a copy of @policy from the next batch on */
void drain_set_policy(struct drain *d, const struct repair_policy *policy);

/** drain_get_stats() - copy the counters; each one is consistent in itself */
void drain_get_stats(struct drain *d, struct drain_stats *stats);

#endif
