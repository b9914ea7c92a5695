"""The service: what it decides and does to the kernel, and what it tells of itself."""
