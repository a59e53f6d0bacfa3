// MachnetDPDK
