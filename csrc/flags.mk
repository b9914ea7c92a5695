# What csrc/Makefile and tests/fuzz/Makefile have in common.

CSTD := -std=gnu11
WARNINGS := -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wmissing-prototypes \
	-Wvla -Werror
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer

# Everything but drain.c is pure: no system call, no allocation.
CSRC_DIRECTORY := $(dir $(lastword $(MAKEFILE_LIST)))
PURE := $(filter-out drain,$(basename $(notdir $(wildcard $(CSRC_DIRECTORY)*.c))))
