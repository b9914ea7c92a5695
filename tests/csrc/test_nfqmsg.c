/* SPDX-License-Identifier: MIT */
/* Netlink messages: read from the kernel, whole or damaged, and written byte by byte. */
#include "messages.h"
#include "nfqmsg.h"

#include <endian.h>
#include <errno.h>
#include <linux/netfilter.h>

enum { QUEUE = 0x1234, ID = 0x01020304 };

static const uint8_t payload[] = "Forty-two bytes, more or less: a payload.";

/* Returns an allocated copy, valid until the next call. It is aligned, as messages must be, and
 * AddressSanitizer sees reads past its end; a guard page would leave room for alignment. */
static uint8_t *alone(const struct message *m)
{
	static uint8_t *copy;

	free(copy);
	copy = malloc(m->len);
	CHECK(copy);
	return memcpy(copy, m->bytes, m->len);
}

/* Decodes a copy of @m into @out. */
static size_t decode(const struct message *m, struct nfqmsg *out, size_t max)
{
	uint8_t *copy = alone(m);
	size_t at = 0, n = 0;
	struct nfqmsg msg;

	while (nfqmsg_next(copy, m->len, &at, &msg)) {
		CHECK(n < max);
		CHECK(at <= m->len);
		out[n++] = msg;
	}
	CHECK(at == m->len);
	return n;
}

static struct nfqmsg decode_one(const struct message *m)
{
	struct nfqmsg msg;

	CHECK(decode(m, &msg, 1) == 1);
	return msg;
}

static void a_packet(void)
{
	static struct message m;
	struct nfqmsg msg;

	m.len = 0;
	put_packet(&m, ID, payload, sizeof(payload));
	msg = decode_one(&m);
	CHECK(msg.kind == NFQMSG_PACKET);
	CHECK(msg.id == ID);
	CHECK(msg.caplen == sizeof(payload) && msg.wirelen == sizeof(payload));
	CHECK(!memcmp(msg.payload, payload, sizeof(payload)));
	CHECK(msg.headroom == 16 + 4 + 12 + 8 + 8 + 4);
	CHECK(!msg.partial);
}

/* The largest packet that the kernel copies: an attribute's length has 16 bits. */
static void the_longest_packet(void)
{
	enum { LONGEST = 0xffff - 4 };
	static uint8_t bytes[LONGEST];
	static struct message m;
	struct nfqmsg msg;
	size_t len, at = 0;
	uint8_t *verdict;

	m.len = 0;
	put_packet(&m, ID, bytes, LONGEST);
	CHECK(nfqmsg_next(m.bytes, m.len, &at, &msg));
	CHECK(msg.kind == NFQMSG_PACKET && msg.caplen == LONGEST);
	verdict = nfqmsg_replace(&msg, QUEUE, &len);
	CHECK(len == 36 + LONGEST + 1);
	CHECK(!memcmp(verdict + 32, &(struct nlattr){ 0xffff, NFQA_PAYLOAD }, 4));
}

static void skb_info(void)
{
	static const struct {
		uint32_t flags;
		bool partial;
	} cases[] = {
		{ 0, false },
		{ NFQA_SKB_CSUMNOTREADY, true },
		{ NFQA_SKB_GSO, true },
		{ NFQA_SKB_CSUM_NOTVERIFIED, false },
		{ NFQA_SKB_CSUM_NOTVERIFIED | NFQA_SKB_GSO, true },
	};

	for (size_t i = 0; i < COUNT_OF(cases); i++) {
		static struct message m;
		size_t start;

		m.len = 0;
		start = begin_message(&m, PACKET_TYPE);
		put_packet_header(&m, ID);
		put_attribute32(&m, NFQA_SKB_INFO, cases[i].flags);
		put_attribute(&m, NFQA_PAYLOAD, payload, sizeof(payload));
		end_message(&m, start);
		CHECK(decode_one(&m).partial == cases[i].partial);
	}
}

/* Copied length and length. A packet without payload must not look like an empty one. */
static void partial_copies(void)
{
	static const struct {
		const char *name;
		bool has_payload;
		size_t copied;
		uint32_t cap_len; /* 0: no attribute */
		size_t wirelen;
	} cases[] = {
		{ "whole", true, 20, 0, 20 },
		{ "partial", true, 20, 9000, 9000 },
		{ "cap length below what was copied", true, 20, 10, 20 },
		{ "empty", true, 0, 0, 0 },
		{ "nothing copied", false, 0, 9000, 9000 },
		{ "nothing copied, nothing said", false, 0, 0, 1 },
	};

	for (size_t i = 0; i < COUNT_OF(cases); i++) {
		static struct message m;
		struct nfqmsg msg;
		size_t start;

		check_case = cases[i].name;
		m.len = 0;
		start = begin_message(&m, PACKET_TYPE);
		put_packet_header(&m, ID);
		if (cases[i].cap_len)
			put_attribute32(&m, NFQA_CAP_LEN, cases[i].cap_len);
		if (cases[i].has_payload)
			put_attribute(&m, NFQA_PAYLOAD, payload, cases[i].copied);
		end_message(&m, start);
		msg = decode_one(&m);
		CHECK(msg.kind == NFQMSG_PACKET);
		CHECK(msg.caplen == cases[i].copied);
		CHECK(msg.wirelen == cases[i].wirelen);
		CHECK(!msg.payload == !cases[i].has_payload);
	}
	check_case = "";
}

/* Attributes may come in any order, be unknown, flagged, empty, or too short for their type. */
static void odd_attributes(void)
{
	static struct message m;
	struct nfqmsg msg;
	size_t start;

	m.len = 0;
	start = begin_message(&m, PACKET_TYPE);
	put_attribute(&m, NFQA_PAYLOAD, payload, 21); /* first, and of odd length */
	put_attribute(&m, 999, payload, 3);
	put_attribute(&m, NFQA_CAP_LEN, payload, 3);
	put_attribute(&m, NFQA_SKB_INFO, payload, 0);
	put_attribute(&m, NFQA_CT | NLA_F_NESTED, payload, 13);
	put_packet_header(&m, ID);
	end_message(&m, start);
	msg = decode_one(&m);
	CHECK(msg.kind == NFQMSG_PACKET && msg.id == ID);
	CHECK(msg.caplen == 21 && msg.wirelen == 21);
	CHECK(msg.headroom == 16 + 4 + 4 && msg.headroom < NFQMSG_REPLACE_HEADROOM);
	CHECK(!msg.partial);
}

/* A packet without id cannot be answered, so its message is malformed. */
static void no_usable_id(void)
{
	static struct message m;
	size_t start;

	m.len = 0;
	start = begin_message(&m, PACKET_TYPE);
	put_attribute(&m, NFQA_PACKET_HDR, payload, 6); /* 7 are needed */
	put_attribute(&m, NFQA_PAYLOAD, payload, sizeof(payload));
	end_message(&m, start);
	CHECK(decode_one(&m).kind == NFQMSG_MALFORMED);
}

static void wrong_attribute_lengths(void)
{
	static const uint16_t lengths[] = { 0, 1, 3, 200, 0x7fff, 0xffff };
	static struct message m;

	for (size_t i = 0; i < COUNT_OF(lengths); i++) {
		m.len = 0;
		put_packet(&m, ID, payload, sizeof(payload));
		memcpy(m.bytes + 20 + 12, &lengths[i], sizeof(lengths[i]));
		CHECK(decode_one(&m).kind == NFQMSG_MALFORMED);
	}
}

static void wrong_message_lengths(void)
{
	static const uint32_t lengths[] = { 0, 1, 15, 16, 19, 1000, 0x7fffffff, 0xffffffff };
	static struct message m;

	for (size_t i = 0; i < COUNT_OF(lengths); i++) {
		m.len = 0;
		put_packet(&m, ID, payload, sizeof(payload));
		memcpy(m.bytes, &lengths[i], sizeof(lengths[i]));
		CHECK(decode_one(&m).kind == NFQMSG_MALFORMED);
	}
}

/* A datagram cut anywhere is malformed, and nothing after its end is read. */
static void every_truncation(void)
{
	static struct message m;
	size_t whole;

	m.len = 0;
	put_packet(&m, ID, payload, sizeof(payload));
	whole = m.len;
	for (m.len = 1; m.len < whole; m.len++)
		CHECK(decode_one(&m).kind == NFQMSG_MALFORMED);
	/* The same with the header's length corrected: then attributes are cut. */
	for (m.len = 16; m.len < whole; m.len++) {
		struct nfqmsg msg;

		end_message(&m, 0);
		msg = decode_one(&m);
		CHECK(msg.kind == NFQMSG_MALFORMED || !msg.payload);
	}
}

static void several_messages(void)
{
	static struct message m;
	struct nfqmsg msgs[8];
	size_t done;

	m.len = 0;
	put_packet(&m, 1, payload, 5); /* unaligned, so padding follows */
	put_status(&m, BATCH_TYPE, -ENOENT);
	put_packet(&m, 2, payload, 8);
	done = begin_message(&m, NLMSG_DONE);
	end_message(&m, done);
	put_packet(&m, 3, payload, 7);
	CHECK(decode(&m, msgs, 8) == 5);
	CHECK(msgs[0].kind == NFQMSG_PACKET && msgs[0].id == 1 && msgs[0].caplen == 5);
	CHECK(msgs[1].kind == NFQMSG_STATUS && msgs[1].error == -ENOENT);
	CHECK(msgs[2].kind == NFQMSG_PACKET && msgs[2].id == 2 && msgs[2].caplen == 8);
	CHECK(msgs[3].kind == NFQMSG_OTHER);
	CHECK(msgs[4].kind == NFQMSG_PACKET && msgs[4].id == 3 && msgs[4].caplen == 7);
	/* Nothing after a malformed message can be read. */
	m.bytes[0] = 200;
	CHECK(decode(&m, msgs, 8) == 1);
	CHECK(msgs[0].kind == NFQMSG_MALFORMED);
}

static void answered_sequence(void)
{
	static struct message m;
	const struct nlmsghdr request = { .nlmsg_type = NLMSG_NOOP, .nlmsg_seq = 0xfedcba98 };
	struct nfqmsg msg;

	m.len = 0;
	put_answer(&m, &request, 0);
	msg = decode_one(&m);
	CHECK(msg.kind == NFQMSG_STATUS && msg.request == NLMSG_NOOP && !msg.error);
	CHECK(msg.sequence == 0xfedcba98);
}

static void statuses(void)
{
	static struct message m;
	struct nfqmsg msg;

	m.len = 0;
	put_status(&m, VERDICT_TYPE, -EPERM);
	msg = decode_one(&m);
	CHECK(msg.kind == NFQMSG_STATUS && msg.error == -EPERM);
	CHECK(nfqmsg_is_verdict(msg.request) && !nfqmsg_is_params(msg.request));
	CHECK(nfqmsg_is_verdict(BATCH_TYPE) && nfqmsg_is_params(CONFIG_TYPE));
	CHECK(!nfqmsg_is_verdict(CONFIG_TYPE) && !nfqmsg_is_params(VERDICT_TYPE));
	CHECK(!nfqmsg_is_verdict(NLMSG_NOOP) && !nfqmsg_is_params(NLMSG_NOOP));
	CHECK(nfqmsg_is_noop(NLMSG_NOOP) && !nfqmsg_is_noop(VERDICT_TYPE));
	m.len = 35; /* one byte short of struct nlmsgerr */
	end_message(&m, 0);
	CHECK(decode_one(&m).kind == NFQMSG_MALFORMED);
}

/* Numbers of netlink are in host order, those of nfnetlink_queue in network order. */
#if __BYTE_ORDER == __LITTLE_ENDIAN

static void written_bytes(void)
{
	static const uint8_t accept[] = {
		32, 0, 0,    0,    3, 3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, /* BATCH, REQUEST */
		0,  0, 0x12, 0x34,                         /* AF_UNSPEC, version 0, queue */
		12, 0, 2,    0,    0, 0, 0, 1, 1, 2, 3, 4, /* VERDICT_HDR: NF_ACCEPT, id */
	};
	static const uint8_t params[] = {
		48, 0, 0,    0,    2, 3, 5, 0,
		0,  0, 0,    0,    0, 0, 0, 0, /* CONFIG, REQUEST | ACK */
		0,  0, 0x12, 0x34, 9, 0, 2, 0,
		0,  0, 0xff, 0xff, 2, 0, 0, 0,    /* PARAMS: range, copy-packet */
		8,  0, 4,    0,    0, 0, 0, 0x1f, /* MASK: all flags */
		8,  0, 5,    0,    0, 0, 0, 0x01, /* FLAGS: FAIL_OPEN alone */
	};
	static const uint8_t noop[] = {
		16, 0, 0, 0, 1, 0, 5, 0, 4, 3, 2, 1, 0, 0, 0, 0, /* NOOP, REQUEST | ACK */
	};
	_Alignas(4) uint8_t buf[NFQMSG_PARAMS_LEN];

	_Static_assert(sizeof(accept) == NFQMSG_ACCEPT_LEN, "all of it");
	_Static_assert(sizeof(params) == NFQMSG_PARAMS_LEN, "all of it");
	_Static_assert(sizeof(noop) == NFQMSG_NOOP_LEN, "all of it");
	memset(buf, 0xa5, sizeof(buf));
	nfqmsg_accept_until(buf, QUEUE, ID);
	CHECK(!memcmp(buf, accept, sizeof(accept)));
	memset(buf, 0xa5, sizeof(buf));
	nfqmsg_params(buf, QUEUE, 0xffff);
	CHECK(!memcmp(buf, params, sizeof(params)));
	memset(buf, 0xa5, sizeof(buf));
	nfqmsg_noop(buf, 0x01020304);
	CHECK(!memcmp(buf, noop, sizeof(noop)));
}

/* A verdict with payload, built over the message that brought the packet: the payload neither moves
 * nor changes, and the bytes after the message stay as they are. */
static void replaced_in_place(void)
{
	static const uint8_t headers[] = {
		0, 0, 0,    0,    1,  3, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,              /* VERDICT */
		0, 0, 0x12, 0x34, 12, 0, 2, 0, 0, 0, 0, 1, 1, 2, 3, 4, 0, 0, 10, 0, /* PAYLOAD */
	};
	static struct message m;

	for (size_t len = 0; len <= sizeof(payload); len++) {
		uint8_t expected[sizeof(headers)], *verdict;
		size_t at = 0, verdict_len, end;
		struct nfqmsg msg;

		m.len = 0;
		put_packet(&m, ID, payload, len);
		memset(m.bytes + m.len, 0xa5, 8);
		CHECK(nfqmsg_next(m.bytes, m.len, &at, &msg));
		verdict = nfqmsg_replace(&msg, QUEUE, &verdict_len);

		memcpy(expected, headers, sizeof(headers));
		expected[0] = (uint8_t)(36 + len);
		expected[32] = (uint8_t)(4 + len);
		CHECK(verdict_len == ((36 + len + 3) & ~(size_t)3));
		CHECK(verdict == msg.payload - 36);
		CHECK(!memcmp(verdict, expected, sizeof(expected)));
		CHECK(!memcmp(verdict + 36, payload, len));
		for (end = 36 + len; end < verdict_len; end++)
			CHECK(!verdict[end]); /* padding must not leak memory contents */
		CHECK(verdict[end] == 0xa5);
	}
}

#else

static void written_bytes(void)
{
}

static void replaced_in_place(void)
{
}

#endif

/* Random damage to three messages in one datagram; results must point inside it. */
static void mutations(void)
{
	enum { ROUNDS = 200000 };
	static struct message whole, m;
	uint64_t seed = 7;

	whole.len = 0;
	put_packet(&whole, 1, payload, 13);
	put_status(&whole, VERDICT_TYPE, -ENOENT);
	put_packet(&whole, 2, payload, 40);
	for (int round = 0; round < ROUNDS; round++) {
		uint64_t r = next_random(&seed);
		struct nfqmsg msg;
		uint8_t *copy;
		size_t at = 0, before = 0;

		memcpy(m.bytes, whole.bytes, whole.len);
		m.len = r >> 61 ? whole.len : 1 + (r >> 40) % (whole.len - 1);
		for (uint64_t n = 1 + (r >> 32) % 4; n; n--) {
			uint64_t how = next_random(&seed);

			m.bytes[how % whole.len] = (uint8_t)(how >> 32);
		}
		copy = alone(&m);
		for (; nfqmsg_next(copy, m.len, &at, &msg); before = at) {
			CHECK(at > before && at <= m.len);
			if (msg.kind != NFQMSG_PACKET || !msg.payload)
				continue;
			CHECK(msg.headroom <= (size_t)(msg.payload - copy) - before);
			CHECK(msg.payload + msg.caplen <= copy + m.len);
			CHECK(msg.wirelen >= msg.caplen);
		}
	}
}

int main(void)
{
	a_packet();
	the_longest_packet();
	skb_info();
	partial_copies();
	odd_attributes();
	no_usable_id();
	wrong_attribute_lengths();
	wrong_message_lengths();
	every_truncation();
	several_messages();
	statuses();
	answered_sequence();
	written_bytes();
	replaced_in_place();
	mutations();
	printf("nfqmsg: all right\n");
	return 0;
}
