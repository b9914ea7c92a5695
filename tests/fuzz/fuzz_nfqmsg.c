/* SPDX-License-Identifier: MIT */
/*
 * nfqmsg_next() and nfqmsg_replace() on any datagram: what is found lies inside it, verdicts have
 * the kernel's format, and building them in place changes nothing else.
 *
 * The input is the datagram.
 */
#include "fuzz.h"
#include "fix_messages.h"
#include "nfqmsg.h"

#include <linux/netfilter.h>

enum { QUEUE = 0x1234, PADDING_MAX = 3 };

/* A copy of the input with nothing after it, so that AddressSanitizer sees reads past its end. */
static uint8_t *alone(const uint8_t *data, size_t len, size_t room)
{
	uint8_t *copy = malloc(len + room);

	CHECK(copy || !(len + room));
	if (len)
		memcpy(copy, data, len);
	return copy;
}

/* Checks @msg, which was found between @start and @end. */
static void check_message(const struct nfqmsg *msg, const uint8_t *start, const uint8_t *end)
{
	switch (msg->kind) {
	case NFQMSG_PACKET:
		CHECK(msg->wirelen >= msg->caplen);
		CHECK(msg->payload ? msg->payload + msg->caplen <= end
				   : !msg->caplen && msg->wirelen);
		CHECK(msg->headroom == (msg->payload ? (size_t)(msg->payload - start) : 0));
		break;
	case NFQMSG_STATUS:
		CHECK((size_t)(end - start) >= sizeof(struct nlmsghdr) + sizeof(struct nlmsgerr));
		CHECK(!nfqmsg_is_verdict(msg->request) || !nfqmsg_is_params(msg->request));
		break;
	case NFQMSG_OTHER:
	case NFQMSG_MALFORMED:
		break;
	}
}

/* Checks the headers that every verdict has. */
static void check_verdict(const uint8_t *verdict, size_t len, uint16_t type, uint32_t id)
{
	const struct nlmsghdr header = {
		.nlmsg_len = (uint32_t)len,
		.nlmsg_type = type,
		.nlmsg_flags = NLM_F_REQUEST,
	};
	const struct nfgenmsg family = { .version = NFNETLINK_V0, .res_id = htons(QUEUE) };
	const struct nlattr attr = { .nla_len = 12, .nla_type = NFQA_VERDICT_HDR };
	const struct nfqnl_msg_verdict_hdr decision = { htonl(NF_ACCEPT), htonl(id) };

	CHECK(!memcmp(verdict, &header, sizeof(header)));
	CHECK(!memcmp(verdict + 16, &family, sizeof(family)));
	CHECK(!memcmp(verdict + 20, &attr, sizeof(attr)));
	CHECK(!memcmp(verdict + 24, &decision, sizeof(decision)));
}

/* Checks a verdict with the payload of @original, built over the message that brought it. */
static void check_replacement(const uint8_t *verdict, size_t len, const struct nfqmsg *original)
{
	const size_t unpadded = NFQMSG_REPLACE_HEADROOM + original->caplen;
	const struct nlattr attr = {
		.nla_len = (uint16_t)(sizeof(attr) + original->caplen),
		.nla_type = NFQA_PAYLOAD,
	};

	CHECK(len == aligned(unpadded));
	check_verdict(verdict, unpadded, VERDICT_TYPE, original->id);
	CHECK(!memcmp(verdict + NFQMSG_ACCEPT_LEN, &attr, sizeof(attr)));
	CHECK(!memcmp(verdict + NFQMSG_REPLACE_HEADROOM, original->payload, original->caplen));
	for (size_t at = unpadded; at < len; at++)
		CHECK(!verdict[at]);
}

static void check_batch_verdict(uint32_t id)
{
	_Alignas(4) uint8_t verdict[NFQMSG_ACCEPT_LEN];

	nfqmsg_accept_until(verdict, QUEUE, id);
	check_verdict(verdict, sizeof(verdict), BATCH_TYPE, id);
}

/* Answers @msg in place. @copy is writable, @data the input; the message begins at @start. */
static void replace(const struct nfqmsg *msg, const struct nfqmsg *original, uint8_t *copy,
		    const uint8_t *data, size_t start, size_t end)
{
	size_t len, verdict_start, verdict_end;
	uint8_t *verdict;

	if (msg->headroom < NFQMSG_REPLACE_HEADROOM)
		return;
	verdict = nfqmsg_replace(msg, QUEUE, &len);
	check_replacement(verdict, len, original);
	verdict_start = (size_t)(verdict - copy);
	verdict_end = verdict_start + len;
	CHECK(verdict_start >= start);
	CHECK(!memcmp(copy + start, data + start, verdict_start - start));
	CHECK(verdict_end >= end ||
	      !memcmp(copy + verdict_end, data + verdict_end, end - verdict_end));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t *read = alone(data, size, 0), *answered = alone(data, size, PADDING_MAX);
	size_t at = 0, answered_at = 0, start = 0;
	struct nfqmsg msg, same;

	/* Every verdict is built before the next message is read, as in the drain. */
	for (; nfqmsg_next(read, size, &at, &msg); start = at) {
		CHECK(at > start && at <= size && (at % 4 == 0 || at == size));
		check_message(&msg, read + start, read + at);
		CHECK(nfqmsg_next(answered, size, &answered_at, &same));
		CHECK(same.kind == msg.kind && same.id == msg.id && same.caplen == msg.caplen &&
		      same.headroom == msg.headroom && answered_at == at);
		if (msg.kind != NFQMSG_PACKET)
			continue;
		check_batch_verdict(msg.id);
		replace(&same, &msg, answered, data, start, size);
	}
	CHECK(at == size);
	CHECK(!nfqmsg_next(answered, size, &answered_at, &same));
	CHECK(!memcmp(read, data, size));
	free(read);
	free(answered);
	return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed)
{
	size = LLVMFuzzerMutate(data, size, max_size);
	fix_messages(data, size, seed);
	return size;
}
