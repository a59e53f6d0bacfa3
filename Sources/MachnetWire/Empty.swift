// MachnetWire
