import CMachnetABI

/// What `--version` says: the release, and the version of the memory layout and control messages. Daemon, commands and preload
/// library work together where the latter is the same.
public let machnetVersion = "0.1.0 (channel \(MN_ABI_VERSION))"
