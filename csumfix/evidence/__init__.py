"""Evidence about packets: captures, the egress tap and probes; and the causes it shows."""
