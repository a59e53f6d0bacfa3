import CLinux
import CMachnetABI
import Glibc

/// Why a request was not granted: what the reply's `status` will say.
struct Refusal: Error {
  let code: Int32
  /// Goes with the reply.
  let message: String?
  /// The request cannot come from a sane client: it is disconnected.
  var isLie = false

  init(_ code: Int32, message: String? = nil) {
    self.code = code
    self.message = message
  }

  static var lie: Refusal {
    var refusal = Refusal(EPROTO)
    refusal.isLie = true
    return refusal
  }
}

/// An IPv4 address and port in host byte order; port 0: none.
struct Peer: Equatable {
  var address: UInt32
  var port: UInt16
}

/// What the kernel says about a socket that came over the control socket. Nothing here is the client's word.
struct ShadowSocket {
  let cookie: UInt64
  let netnsCookie: UInt64
  let inode: UInt64
  let localAddress: UInt32
  let localPort: UInt16
  let peer: Peer?
  let reusesPort: Bool
  let reusesAddress: Bool

  /// - Throws: ENOTSOCK, EPROTOTYPE (not UDP), EAFNOSUPPORT (cannot carry IPv4), EINVAL (not bound).
  init(descriptor: Int32) throws(Refusal) {
    var found = mnc_socket()
    let status = unsafe mnc_inspect_socket(descriptor, &found)
    if status < 0 { throw Refusal(-status) }
    guard found.is_udp else { throw Refusal(EPROTOTYPE) }
    guard !found.is_v6 || !found.only_v6, let local = ipv4(found.local) else { throw Refusal(EAFNOSUPPORT) }
    guard found.local_port != 0 else { throw Refusal(EINVAL) }
    if found.connected {
      guard let address = ipv4(found.peer) else { throw Refusal(EAFNOSUPPORT) }
      peer = Peer(address: address, port: found.peer_port)
    } else {
      peer = nil
    }
    cookie = found.cookie
    netnsCookie = found.netns_cookie
    inode = found.inode
    localAddress = local
    localPort = found.local_port
    reusesPort = found.reuse_port
    reusesAddress = found.reuse_address
  }
}

/// The PID namespace of a process, by its inode number; nil: not for us to see.
func processNamespace(_ pid: Int32) -> UInt64? {
  var facts = stat()
  guard pid > 0, unsafe stat("/proc/\(pid)/ns/pid", &facts) == 0 else { return nil }
  return UInt64(facts.st_ino)
}

/// The IPv4 address in 16 bytes of network order: v4-mapped, or the wildcard of either family; nil for others.
func ipv4(_ words: (UInt32, UInt32, UInt32, UInt32)) -> UInt32? {
  if words.0 == 0 && words.1 == 0 && UInt32(bigEndian: words.2) == 0xffff { return UInt32(bigEndian: words.3) }
  return words == (0, 0, 0, 0) ? 0 : nil
}

/// The v4-mapped form of an IPv4 address in host byte order.
func mapped(_ address: UInt32) -> mn_address {
  mn_address(words: (0, 0, UInt32(0xffff).bigEndian, address.bigEndian))
}

/// Small numbers for network namespaces, 0 for the daemon's own. A number is free again when its last endpoint is gone.
struct NetworkNamespaces {
  private var indices: [UInt64: (index: UInt16, endpoints: Int)] = [:]
  private var used: Set<UInt16> = [0]
  private let own: UInt64

  init(own: UInt64) { self.own = own }

  /// Counts an endpoint in. nil: 65,535 other namespaces have endpoints.
  mutating func enter(_ cookie: UInt64) -> UInt16? {
    if cookie == own { return 0 }
    if let known = indices[cookie] {
      indices[cookie] = (known.index, known.endpoints + 1)
      return known.index
    }
    guard let index = (1...UInt16.max).first(where: { !used.contains($0) }) else { return nil }
    used.insert(index)
    indices[cookie] = (index, 1)
    return index
  }

  mutating func leave(_ cookie: UInt64) {
    guard cookie != own, let known = indices[cookie] else { return }
    indices[cookie] = known.endpoints == 1 ? nil : (known.index, known.endpoints - 1)
    if known.endpoints == 1 { used.remove(known.index) }
  }

  func isOwn(_ cookie: UInt64) -> Bool { cookie == own }
}
