/* SPDX-License-Identifier: MIT */
#ifndef FAKE_KERNEL_H
#define FAKE_KERNEL_H

/*
 * A drain whose socket is one end of a socket pair. The test holds the other end and acts as the
 * kernel.
 *
 * Packets are written as letters, and the verdicts that come back are read as words:
 *
 *   r  outer checksum right           A7  accept all up to packet 7
 *   w  wrong: to be repaired          R8  replace packet 8
 *   c  wrong, and corrupt inside
 *   p  wrong, and marked partial
 *   t  wrong, and not copied whole
 *   h  wrong, and no room for a verdict in front of the payload
 *   m  a malformed message
 *   o  a message of another type
 *   e  refusal of a verdict: no such packet
 *   a  an acknowledgement
 *   +  the next message is in the same datagram as the last
 */

#include "drain.h"
#include "messages.h"
#include "packets.h"

#include <errno.h>
#include <sys/socket.h>

enum { FAKE_QUEUE = 7, WORDS_MAX = 8192 };

struct fake_kernel {
	int fd;
	int drain_fd;
	struct drain *drain;
	uint32_t last_id;
	size_t payload; /* inner payload bytes of the packets */
};

static const struct repair_policy vxlan_policy = { .ports = ONLY_PORT(VXLAN_PORT) };

static inline struct fake_kernel fake_kernel_new(void)
{
	struct fake_kernel k = { .payload = 4 };
	int fds[2];

	CHECK(!socketpair(AF_UNIX, SOCK_DGRAM, 0, fds));
	k.fd = fds[0];
	k.drain_fd = fds[1];
	k.drain = drain_new(k.drain_fd, FAKE_QUEUE, &vxlan_policy);
	CHECK(k.drain);
	return k;
}

static inline void fake_kernel_free(struct fake_kernel *k)
{
	drain_free(k->drain);
	close(k->fd);
	close(k->drain_fd);
}

static inline void fake_kernel_send(const struct fake_kernel *k, const struct message *m)
{
	CHECK(send(k->fd, m->bytes, m->len, 0) == (ssize_t)m->len);
}

/** fake_kernel_take_noop() - receive a no-op request */
static inline struct nlmsghdr fake_kernel_take_noop(const struct fake_kernel *k)
{
	struct nlmsghdr noop;

	CHECK(recv(k->fd, &noop, sizeof(noop), 0) == sizeof(noop));
	CHECK(noop.nlmsg_len == sizeof(noop) && noop.nlmsg_type == NLMSG_NOOP);
	CHECK(noop.nlmsg_flags == (NLM_F_REQUEST | NLM_F_ACK) && !noop.nlmsg_pid);
	return noop;
}

/** fake_kernel_answer() - acknowledge a request */
static inline void fake_kernel_answer(const struct fake_kernel *k, const struct nlmsghdr *request)
{
	static struct message m;

	m.len = 0;
	put_answer(&m, request, 0);
	fake_kernel_send(k, &m);
}

/** fake_kernel_end() - report that the queue is gone, which ends drain_run() after the batch */
static inline void fake_kernel_end(const struct fake_kernel *k)
{
	static struct message m;

	m.len = 0;
	put_status(&m, VERDICT_TYPE, -ENODEV);
	fake_kernel_send(k, &m);
}

/* Packet of kind @letter; the letters are explained above. */
static inline void put_packet_letter(struct message *m, char letter, uint32_t id, size_t payload)
{
	const struct shape shape = { 4, 0, 0, 4, 0, UDP, payload, false, 0 };
	struct packet p = build(&shape);
	size_t start = begin_message(m, PACKET_TYPE);

	if (letter != 'r')
		p.bytes[p.udp + 6] ^= 0x10;
	if (letter == 'c')
		p.bytes[p.len - 1] ^= 0x10;
	if (letter == 'h')
		put_attribute(m, NFQA_PAYLOAD, p.bytes, p.len);
	put_packet_header(m, id);
	if (letter == 'p')
		put_attribute32(m, NFQA_SKB_INFO, NFQA_SKB_CSUMNOTREADY);
	if (letter == 't')
		put_attribute32(m, NFQA_CAP_LEN, (uint32_t)p.len + 1);
	put_attribute32(m, NFQA_MARK, 0x4000);
	if (letter != 'h')
		put_attribute(m, NFQA_PAYLOAD, p.bytes, p.len);
	end_message(m, start);
}

static inline void put_letter(struct fake_kernel *k, struct message *m, char letter)
{
	switch (letter) {
	case 'm':
		begin_message(m, PACKET_TYPE); /* of length 0 */
		break;
	case 'o':
		end_message(m, begin_message(m, NLMSG_DONE));
		break;
	case 'e':
		put_status(m, VERDICT_TYPE, -ENOENT);
		break;
	case 'a':
		put_status(m, VERDICT_TYPE, 0);
		break;
	default:
		put_packet_letter(m, letter, ++k->last_id, k->payload);
		break;
	}
}

/** fake_kernel_queue() - send the messages that @letters stand for */
static inline void fake_kernel_queue(struct fake_kernel *k, const char *letters)
{
	static struct message m;

	for (m.len = 0; *letters; letters++) {
		put_letter(k, &m, *letters);
		if (letters[1] == '+') {
			letters++;
			continue;
		}
		fake_kernel_send(k, &m);
		m.len = 0;
	}
}

/* Checks the format of one verdict, and appends it to @words. */
static inline void read_verdict(const uint8_t *at, size_t len, char *words)
{
	size_t used = strlen(words);
	struct nlmsghdr header;
	uint32_t id;

	memcpy(&header, at, sizeof(header));
	memcpy(&id, at + 28, sizeof(id));
	CHECK(header.nlmsg_flags == NLM_F_REQUEST);
	CHECK(at[18] == 0 && at[19] == FAKE_QUEUE);
	if (header.nlmsg_type == BATCH_TYPE) {
		CHECK(len == 32);
	} else {
		struct repair_result r;
		static uint8_t packet[MESSAGE_MAX];

		CHECK(header.nlmsg_type == VERDICT_TYPE);
		memcpy(packet, at + 36, len - 36);
		r = repair(packet, len - 36, len - 36, false, true, &vxlan_policy);
		CHECK(r.reason == REPAIR_RIGHT);
	}
	snprintf(words + used, WORDS_MAX - used, "%s%c%u", used ? " " : "",
		 header.nlmsg_type == BATCH_TYPE ? 'A' : 'R', ntohl(id));
}

/** fake_kernel_verdicts() - the verdicts sent so far, as words; valid until the next call */
static inline const char *fake_kernel_verdicts(const struct fake_kernel *k)
{
	static char words[WORDS_MAX];
	static _Alignas(8) uint8_t bytes[4 * MESSAGE_MAX];
	ssize_t n;

	words[0] = 0;
	while ((n = recv(k->fd, bytes, sizeof(bytes), MSG_DONTWAIT)) > 0) {
		for (size_t at = 0; at < (size_t)n;) {
			uint32_t len;

			memcpy(&len, bytes + at, sizeof(len));
			CHECK(len >= 32 && len <= (size_t)n - at);
			read_verdict(bytes + at, len, words);
			at += (len + 3) & ~(size_t)3;
		}
	}
	return words;
}

static inline struct drain_stats stats_of(const struct fake_kernel *k)
{
	struct drain_stats stats;

	drain_get_stats(k->drain, &stats);
	return stats;
}

#endif
