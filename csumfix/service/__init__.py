"""The service: decides on lanes, changes rules and queues, and reports its state."""
