import CLinux
import CMachnetABI
import Glibc

/// A refusal that is worth an explanation: after it, a socket stays on the kernel.
struct RefusalRecord {
  let request: String
  let code: Int32
  let reason: String
  /// Of the socket; 0: it was not about one.
  let inode: UInt64
  var count: UInt64 = 1
  /// CLOCK_MONOTONIC, ns.
  var latest = mn_linux_monotonic()

  /// Different ones that are remembered of one process.
  static let perConnection = 16

  /// nil: a refusal that leaves no socket behind.
  init?(_ refusal: Refusal, _ kind: Int, inode: UInt64) {
    switch kind {
    case MN_REQUEST_OPEN: request = "open"
    case MN_REQUEST_CONNECT: request = "connect"
    case MN_REQUEST_CHANNEL: request = "channel"
    default: return nil
    }
    if isOrdinary(refusal, kind) { return nil }
    code = refusal.code
    reason = Self.words(refusal.code, kind)
    self.inode = inode
  }

  func isLike(_ other: RefusalRecord) -> Bool {
    request == other.request && code == other.code && inode == other.inode
  }

  private static func words(_ code: Int32, _ kind: Int) -> String {
    switch (kind, code) {
    case (MN_REQUEST_CHANNEL, EMFILE): "the process has as many channels as one may (channel.max-channels-per-process), or its user half of all"
    case (_, EACCES):
      "its address is an engine's, and the socket is of another network namespace than the daemon, or its port belongs to sessions (transport.ports)"
    case (_, EADDRINUSE): "another socket holds that address and port of an engine"
    case (_, EADDRNOTAVAIL): "its address is neither this host's nor an engine's"
    case (_, EAFNOSUPPORT): "it carries IPv6 only"
    case (_, EPROTOTYPE): "it is not a UDP socket"
    case (_, EINVAL): "the kernel has not bound it to a port, or has given it another one since"
    case (_, EBUSY): "the process that passed it on has it still; it is asked for again each second"
    case (_, EEXIST): "processes of different users, or PID namespaces, have it, and only the kernel's queue is one that all of them see"
    case (_, ENFILE): "the daemon serves as many sockets as it may (channel.max-endpoints), its user has half of those, or there are no descriptors left"
    case (_, ENOBUFS): "an engine did not take the order in time"
    case (_, ENOMEM): "the daemon got no memory for it"
    default: unsafe String(cString: strerror(code))
    }
  }
}
