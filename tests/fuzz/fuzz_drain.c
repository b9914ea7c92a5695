/* SPDX-License-Identifier: MIT */
/*
 * The drain on any datagram: every packet in it is counted and answered once, in order, and
 * nothing else is sent. The expectation uses nfqmsg_next() and repair(), which the other targets
 * check.
 *
 * The input is the datagram.
 */
#include "fake_kernel.h"
#include "fuzz.h"
#include "fix_messages.h"
#include "nfqmsg.h"
#include "fix_tunnel.h"

enum { DATAGRAM_MAX = 4096 /* whose verdicts, as words, fit in WORDS_MAX */ };

/**
 * struct expectation - what the drain should count and answer
 * @probes:         acknowledgements of probes; how long they waited is not predicted
 * @accept_pending: the packets up to @last_id still need a batch verdict
 * @unanswered:     packets have been judged since verdicts were last sent
 */
struct expectation {
	struct drain_stats stats;
	char verdicts[WORDS_MAX];
	uint64_t probes;
	bool accept_pending, unanswered;
	uint32_t last_id;
};

static void expect_verdict(struct expectation *e, char verdict, uint32_t id)
{
	size_t used = strlen(e->verdicts);

	snprintf(e->verdicts + used, WORDS_MAX - used, "%s%c%u", used ? " " : "", verdict, id);
}

static void expect_accept(struct expectation *e)
{
	if (e->accept_pending)
		expect_verdict(e, 'A', e->last_id);
	e->accept_pending = false;
}

static void expect_flush(struct expectation *e)
{
	expect_accept(e);
	e->stats.sends += e->unanswered;
	e->unanswered = false;
}

static void expect_packet(struct expectation *e, const struct nfqmsg *msg)
{
	struct repair_result result =
	    repair(msg->payload, msg->caplen, msg->wirelen, msg->partial,
		   msg->headroom >= NFQMSG_REPLACE_HEADROOM, &vxlan_policy);

	e->stats.packets++;
	e->stats.bytes += msg->wirelen;
	e->stats.reasons[result.reason]++;
	if (result.port) {
		struct drain_port_stats *slot = &e->stats.ports[0]; /* the policy has one port */

		slot->port = result.port;
		slot->packets++;
		slot->repaired += repair_outcome(result.reason) == REPAIR_REPAIRED;
		slot->left_wrong += repair_outcome(result.reason) == REPAIR_LEFT_WRONG;
	}
	if (result.verdict == REPAIR_REPLACE) {
		expect_accept(e);
		expect_verdict(e, 'R', msg->id);
	} else {
		e->accept_pending = true;
	}
	e->last_id = msg->id;
	e->unanswered = true;
}

static void expect_status(struct expectation *e, const struct nfqmsg *msg)
{
	if (nfqmsg_is_noop(msg->request)) {
		expect_flush(e);
		e->probes++;
	} else {
		e->stats.verdict_errors += msg->error && nfqmsg_is_verdict(msg->request);
	}
}

static void expect_batch(struct expectation *e)
{
	size_t i = 0;

	while (i < DRAIN_BATCH_BOUNDS && e->stats.packets > drain_batch_bounds[i])
		i++;
	e->stats.batch_sizes[i] += e->stats.packets > 0;
	e->stats.batches = 1;
}

static void expect_datagram(struct expectation *e, uint8_t *data, size_t size)
{
	struct nfqmsg msg;
	size_t at = 0;

	while (nfqmsg_next(data, size, &at, &msg)) {
		if (msg.kind == NFQMSG_PACKET)
			expect_packet(e, &msg);
		if (msg.kind == NFQMSG_STATUS)
			expect_status(e, &msg);
		e->stats.malformed += msg.kind == NFQMSG_MALFORMED;
		e->stats.unexpected += msg.kind == NFQMSG_OTHER;
	}
	expect_flush(e);
	expect_batch(e);
	e->stats.verdict_errors++; /* the one that ends it: fake_kernel_end() */
}

/* Counts the probes and removes them from the counters. The drain sent none, so none was lost. */
static uint64_t take_probes(struct drain_stats *stats)
{
	uint64_t probes = 0;

	for (size_t i = 0; i <= DRAIN_WAIT_BOUNDS; i++) {
		probes += stats->waits[i];
		stats->waits[i] = 0;
	}
	CHECK(stats->overruns == probes);
	stats->wait_us = stats->overruns = 0;
	return probes;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct expectation expected;
	static struct message sent, copy;
	struct fake_kernel kernel;
	struct drain_stats stats;

	if (size > DATAGRAM_MAX)
		return -1;
	sent.len = copy.len = 0;
	put_bytes(&sent, data, size);
	put_bytes(&copy, data, size);
	expected = (struct expectation){ .accept_pending = false };
	expect_datagram(&expected, copy.bytes, copy.len);
	kernel = fake_kernel_new();
	fake_kernel_send(&kernel, &sent);
	fake_kernel_end(&kernel);
	CHECK(drain_run(kernel.drain) == -ENODEV);
	CHECK(!strcmp(fake_kernel_verdicts(&kernel), expected.verdicts));
	stats = stats_of(&kernel);
	CHECK(take_probes(&stats) == expected.probes);
	CHECK(!memcmp(&stats, &expected.stats, sizeof(stats)));
	fake_kernel_free(&kernel);
	return 0;
}

/* Fixes the packets in the datagram. */
static void fix_payloads(uint8_t *data, size_t size, unsigned int choice)
{
	struct nfqmsg msg;
	size_t at = 0;

	while (nfqmsg_next(data, size, &at, &msg))
		if (msg.kind == NFQMSG_PACKET && msg.payload)
			fix_tunnel(msg.payload, msg.caplen, choice);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed)
{
	size = LLVMFuzzerMutate(data, size, max_size);
	fix_messages(data, size, seed);
	fix_payloads(data, size, seed >> 3);
	return size;
}
