"""What is known of the packets: judged captures, the egress tap, and later probes."""
