"""Reads and changes the kernel of this node: tunnels, rules, queues and netlink events."""
