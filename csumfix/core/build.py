"""Builds csumfix.core._core, the cffi extension around the C core in csrc/ (API mode)."""

import re
from pathlib import Path

from cffi import FFI

# setuptools wants paths relative to setup.py, whatever directory this file is run from.
CSRC = Path("csrc")

ENUMERATION = re.compile(r"^enum \w+ \{.*?\};", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)


def enumerations(*headers: str) -> str:
    """Return every named enum of these headers as cffi reads it: C alone says what is in them."""
    text = "\n".join((CSRC / header).read_text(encoding="utf-8") for header in headers)
    return "\n".join(ENUMERATION.findall(COMMENT.sub("", text)))


# Only what Python uses. In API mode the compiler checks each line against the headers and fills
# in every `...`.
DECLARATIONS = """
uint64_t checksum_add(const void *data, size_t len);
uint64_t checksum_add_portable(const void *data, size_t len);
uint16_t checksum_fold(uint64_t raw);
struct checksum_backend { const char *name; ...; };
extern struct checksum_backend checksum_in_use;

struct outer_ports { ...; };
void outer_ports_add(struct outer_ports *ports, uint16_t port);
void outer_ports_set_geneve(struct outer_ports *ports, uint16_t port);

struct repair_policy { struct outer_ports ports; bool fill_zero; ...; };
struct repair_result { enum repair_reason reason; ...; };
struct repair_result repair(uint8_t *packet, size_t caplen, size_t wirelen, bool partial,
                            bool replaceable, const struct repair_policy *policy);
const char *repair_reason_name(enum repair_reason reason);
enum repair_outcome repair_outcome(enum repair_reason reason);

struct view { const uint8_t *data; size_t len; ...; };
struct inspection {
    enum outer_status status; enum inspect_check check;
    uint16_t found; uint16_t expected; uint16_t difference;
    uint16_t source; uint16_t dest; uint32_t vni; enum inner_state inner;
    uint16_t inner_found; uint16_t inner_expected; ...;
};
struct inspection inspect(struct view v, const struct outer_ports *ports);

struct drain;
extern const uint32_t drain_batch_bounds[...];
extern const uint32_t drain_wait_bounds[...];
struct drain_port_stats { uint64_t port, packets, repaired, left_wrong; };
struct drain_stats {
    uint64_t packets, bytes, batches;
    uint64_t batch_sizes[...];
    uint64_t waits[...];
    uint64_t wait_us;
    uint64_t reasons[...];
    uint64_t sends, send_errors, verdict_errors, overruns, interrupts, malformed, unexpected;
    struct drain_port_stats ports[...];
};
struct drain *drain_new(int fd, uint16_t queue, const struct repair_policy *policy);
void drain_free(struct drain *d);
#define DRAIN_COPY_WHOLE ...
int drain_configure(struct drain *d, int socket_bytes, uint32_t copy_range);
int drain_run(struct drain *d);
void drain_stop(struct drain *d);
void drain_probe(struct drain *d);
void drain_set_policy(struct drain *d, const struct repair_policy *policy);
void drain_get_stats(struct drain *d, struct drain_stats *stats);
"""

HEADERS = """
#include "checksum.h"
#include "drain.h"
#include "inspect.h"
#include "repair.h"
"""

ffi = FFI()
ffi.cdef(enumerations("outer.h", "inner.h", "repair.h", "inspect.h"))
ffi.cdef(DECLARATIONS)
ffi.set_source(
    "csumfix.core._core",
    HEADERS,
    sources=sorted(str(path) for path in CSRC.glob("*.c")),
    depends=[str(path) for path in CSRC.glob("*.h")],
    include_dirs=[str(CSRC)],
    extra_compile_args=["-std=gnu11", "-O2", "-Wall", "-Wextra"],
)
