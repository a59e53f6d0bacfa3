// MachnetControl
