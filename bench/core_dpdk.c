/* SPDX-License-Identifier: MIT */
/* DPDK's checksum as a function NAME, so that it can be compiled with different options. */
#include <rte_ip.h>

uint16_t NAME(const void *data, size_t len);

uint16_t NAME(const void *data, size_t len)
{
	return rte_raw_cksum(data, len);
}
