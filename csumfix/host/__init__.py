"""The kernel of this node: tunnels, rules, queues and what it says of their changes."""
