// MachnetEngine
