public import CMachnetABI
public import CTrampoline
import ShimChannel
import Synchronization

/// Options: the shadow keeps them all; those that the rings must honour are read back from it.
extension Socket {
  /// Reads everything of a shadow that matters to an endpoint.
  static func readOptions(_ endpoint: UnsafeMutablePointer<mn_endpoint>, _ fd: Int32, _ domain: Int32) {
    unsafe readFileFlags(endpoint, fd)
    unsafe readOption(endpoint, fd, Int32(MN_SOL_SOCKET), Int32(MN_SO_RCVTIMEO))
    unsafe readOption(endpoint, fd, Int32(MN_SOL_SOCKET), Int32(MN_SO_SNDTIMEO))
    unsafe readOption(endpoint, fd, Int32(MN_SOL_SOCKET), Int32(MN_SO_TIMESTAMP))
    unsafe readOption(endpoint, fd, Int32(MN_SOL_SOCKET), Int32(MN_SO_TIMESTAMPNS))
    unsafe readOption(endpoint, fd, Int32(MN_SOL_SOCKET), Int32(MN_SO_TIMESTAMPING))
    unsafe readOption(endpoint, fd, Int32(MN_SOL_SOCKET), Int32(MN_SO_RXQ_OVFL))
    unsafe readOption(endpoint, fd, Int32(MN_IPPROTO_IP), Int32(MN_IP_PKTINFO))
    unsafe readOption(endpoint, fd, Int32(MN_IPPROTO_IP), Int32(MN_IP_RECVTTL))
    unsafe readOption(endpoint, fd, Int32(MN_IPPROTO_IP), Int32(MN_IP_RECVTOS))
    unsafe readOption(endpoint, fd, Int32(MN_IPPROTO_IP), Int32(MN_IP_MTU_DISCOVER))
    unsafe readOption(endpoint, fd, Int32(MN_IPPROTO_UDP), Int32(MN_UDP_SEGMENT))
    unsafe readOption(endpoint, fd, Int32(MN_IPPROTO_UDP), Int32(MN_UDP_GRO))
    if domain == Int32(MN_AF_INET6) { unsafe readOption(endpoint, fd, Int32(MN_IPPROTO_IPV6), Int32(MN_IPV6_RECVPKTINFO)) }
    // Time to live and type of service are set only when the program set them: 64 and 0 are the engine's defaults, too.
    unsafe readOption(endpoint, fd, Int32(MN_IPPROTO_IP), Int32(MN_IP_TTL))
    unsafe readOption(endpoint, fd, Int32(MN_IPPROTO_IP), Int32(MN_IP_TOS))
  }

  /// SO_RCVBUF, which the program has set: the rings hold no more than the kernel's queue would. (Where it has not, they
  /// hold at least as much as the kernel's default does.)
  static func readReceiveLimit(_ socket: SocketPointer, _ fd: Int32) {
    guard unsafe socket.pointee.hasReceiveLimit, let endpoint = unsafe socket.pointee.endpoint else { return }
    var value: Int32 = 0
    var length: UInt32 = 4
    guard unsafe mn_sys_getsockopt(fd, Int32(MN_SOL_SOCKET), Int32(MN_SO_RCVBUF), &value, &length) == 0 else { return }
    unsafe mn_endpoint_set_receive_limit(endpoint, UInt32(clamping: value))
  }

  /// The shadow's options have changed; what an endpoint must know of them is read next. Pairs with `adopt`: where the endpoint
  /// is not there yet, whoever brings it reads them once more.
  static func noteSetting(_ socket: SocketPointer) {
    unsafe socket.pointee.settings.wrappingAdd(1, ordering: .relaxed)
    mn_fence()
  }

  static func readFileFlags(_ endpoint: UnsafeMutablePointer<mn_endpoint>, _ fd: Int32) {
    let flags = mn_sys_fcntl(fd, Int32(MN_F_GETFL), 0)
    unsafe setFlag(endpoint, MN_SOCKET_NONBLOCK, flags >= 0 && flags & Int32(MN_O_NONBLOCK) != 0)
  }

  private static func setFlag(_ endpoint: UnsafeMutablePointer<mn_endpoint>, _ flag: Int, _ on: Bool) {
    let at = unsafe UnsafeMutableRawPointer(endpoint) + Int(MN_OFFSET_ENDPOINT_FLAGS)
    if on {
      _ = unsafe mn_fetch_or_u32(at, UInt32(flag))
    } else {
      _ = unsafe mn_fetch_and_u32(at, ~UInt32(flag))
    }
  }

  /// Reads one option back from the shadow into the endpoint.
  @inline(never)
  static func readOption(_ endpoint: UnsafeMutablePointer<mn_endpoint>, _ fd: Int32, _ level: Int32, _ name: Int32) {
    // Large enough for a timeval.
    var value: (Int64, Int64) = (0, 0)
    var length: UInt32 = 16
    guard unsafe mn_sys_getsockopt(fd, level, name, &value, &length) == 0 else { return }
    let number = Int32(truncatingIfNeeded: value.0)
    switch (Int(level), Int(name)) {
    case (MN_SOL_SOCKET, MN_SO_RCVTIMEO):
      unsafe mn_endpoint_set_receive_timeout(endpoint, nanoseconds(value))
    case (MN_SOL_SOCKET, MN_SO_SNDTIMEO):
      unsafe mn_endpoint_set_send_timeout(endpoint, nanoseconds(value))
    case (MN_SOL_SOCKET, MN_SO_TIMESTAMP):
      unsafe setFlag(endpoint, MN_SOCKET_TIMESTAMP, number != 0)
    case (MN_SOL_SOCKET, MN_SO_TIMESTAMPNS):
      unsafe setFlag(endpoint, MN_SOCKET_TIMESTAMPNS, number != 0)
    case (MN_SOL_SOCKET, MN_SO_TIMESTAMPING):
      unsafe setFlag(endpoint, MN_SOCKET_TIMESTAMPING, number & Stamping.report != 0 && number & Stamping.take != 0)
    case (MN_SOL_SOCKET, MN_SO_RXQ_OVFL):
      unsafe setFlag(endpoint, MN_SOCKET_RXQ_OVFL, number != 0)
    case (MN_IPPROTO_IP, MN_IP_PKTINFO):
      unsafe setFlag(endpoint, MN_SOCKET_PKTINFO, number != 0)
    case (MN_IPPROTO_IP, MN_IP_RECVTTL):
      unsafe setFlag(endpoint, MN_SOCKET_RECVTTL, number != 0)
    case (MN_IPPROTO_IP, MN_IP_RECVTOS):
      unsafe setFlag(endpoint, MN_SOCKET_RECVTOS, number != 0)
    case (MN_IPPROTO_IPV6, MN_IPV6_RECVPKTINFO):
      unsafe setFlag(endpoint, MN_SOCKET_RECVPKTINFO6, number != 0)
    case (MN_IPPROTO_IP, MN_IP_MTU_DISCOVER):
      unsafe mn_endpoint_set_mtu_discover(endpoint, UInt32(bitPattern: number))
    case (MN_IPPROTO_UDP, MN_UDP_SEGMENT):
      unsafe mn_endpoint_set_segment(endpoint, UInt16(truncatingIfNeeded: number))
    case (MN_IPPROTO_UDP, MN_UDP_GRO):
      unsafe setFlag(endpoint, MN_SOCKET_GRO, number != 0)
      unsafe mn_endpoint_set_receive_together(endpoint, number != 0 ? 1 : 0)
    case (MN_IPPROTO_IP, MN_IP_TTL):
      unsafe mn_endpoint_set_ttl(endpoint, UInt8(truncatingIfNeeded: number))
      unsafe mn_endpoint_set_ttl_set(endpoint, 1)
    case (MN_IPPROTO_IP, MN_IP_TOS):
      unsafe mn_endpoint_set_tos(endpoint, UInt8(truncatingIfNeeded: number))
      unsafe mn_endpoint_set_tos_set(endpoint, 1)
    default:
      break
    }
  }

  /// A timeval as ns; 0 (no timeout) stays 0.
  private static func nanoseconds(_ time: (Int64, Int64)) -> UInt64 {
    let seconds = UInt64(clamping: time.0)
    if seconds > 1 << 32 { return 0 }
    return seconds * 1_000_000_000 + UInt64(clamping: time.1) * 1000
  }
}

@c(mn_hook_setsockopt)
public func setsockopt(
  _ entry: UnsafeMutableRawPointer, _ fd: Int32, _ level: Int32, _ name: Int32, _ value: UnsafeRawPointer?, _ length: UInt32
) -> Int32 {
  let result = unsafe mn_real_setsockopt(fd, level, name, value, length)
  guard result == 0, let socket = unsafe Socket.from(entry), let value = unsafe value else { return result }
  if unsafe Socket.isKernelsAlone(level, name, value, length) { unsafe Socket.retire(socket, .forGood, fd) }
  if level == Int32(MN_IPPROTO_UDP) && name == Int32(MN_UDP_CORK) { unsafe Socket.cork(socket, Socket.isCorkedByOption(fd)) }
  if level == Int32(MN_SOL_SOCKET) && name == Int32(MN_SO_RCVTIMEO) && length >= 16 {
    unsafe socket.pointee.impatient = value.loadUnaligned(as: Int64.self) < 0
  }
  if level == Int32(MN_SOL_SOCKET) && (name == Int32(MN_SO_RCVBUF) || name == Int32(MN_SO_RCVBUFFORCE)) {
    unsafe socket.pointee.hasReceiveLimit = true
    unsafe Socket.readReceiveLimit(socket, fd)
  }
  unsafe Socket.noteSetting(socket)
  if let endpoint = unsafe socket.pointee.endpoint {
    unsafe Socket.readOption(endpoint, fd, level, name)
    // Either timestamp option switches the other's form off.
    if level == Int32(MN_SOL_SOCKET) && (name == Int32(MN_SO_TIMESTAMP) || name == Int32(MN_SO_TIMESTAMPNS)) {
      unsafe Socket.readOption(endpoint, fd, level, Int32(MN_SO_TIMESTAMP + MN_SO_TIMESTAMPNS) - name)
    }
  }
  return result
}

@c(mn_hook_getsockopt)
public func getsockopt(
  _ entry: UnsafeMutableRawPointer, _ fd: Int32, _ level: Int32, _ name: Int32, _ value: UnsafeMutableRawPointer?,
  _ length: UnsafeMutablePointer<UInt32>?
) -> Int32 {
  if level == Int32(MN_SOL_SOCKET), name == Int32(MN_SO_ERROR), let socket = unsafe Socket.from(entry),
    unsafe socket.pointee.endpoint != nil, let value = unsafe value, let length = unsafe length, unsafe length.pointee >= 4,
    unsafe mn_load_relaxed_u32(Socket.word(socket, Int(MN_OFFSET_ENDPOINT_ERROR))) != 0
  {
    let error = unsafe mn_exchange_u32(Socket.word(socket, Int(MN_OFFSET_ENDPOINT_ERROR)), 0)
    if error != 0 {
      unsafe value.storeBytes(of: error, as: UInt32.self)
      unsafe length.pointee = 4
      return 0
    }
  }
  return unsafe mn_real_getsockopt(fd, level, name, value, length)
}

/// The kernel knows the peer unless it could not connect the shadow itself.
@c(mn_hook_getpeername)
public func getpeername(
  _ entry: UnsafeMutableRawPointer, _ fd: Int32, _ address: UnsafeMutableRawPointer?, _ length: UnsafeMutablePointer<UInt32>?
) -> Int32 {
  if let socket = unsafe Socket.from(entry), unsafe socket.pointee.endpoint != nil, let peer = unsafe Socket.peer(socket),
    Socket.kernelName(fd, unsafe socket.pointee.domain, peer: true) == nil, unsafe address != nil, unsafe length != nil
  {
    unsafe peer.store(address, length, domain: socket.pointee.domain)
    return 0
  }
  return unsafe mn_real_getpeername(fd, address, length)
}

@c(mn_hook_shutdown)
public func shutdown(_ entry: UnsafeMutableRawPointer, _ fd: Int32, _ how: Int32) -> Int32 {
  let result = mn_real_shutdown(fd, how)
  guard let socket = unsafe Socket.from(entry), how >= 0, how <= 2 else { return result }
  // On Linux even the shutdown of an unconnected socket, which reports ENOTCONN, takes effect.
  if how != Int32(MN_SHUT_WR) { unsafe socket.pointee.shut.bitwiseOr(UInt32(MN_SOCKET_SHUTDOWN_READ), ordering: .relaxed) }
  if how != Int32(MN_SHUT_RD) { unsafe socket.pointee.shut.bitwiseOr(UInt32(MN_SOCKET_SHUTDOWN_WRITE), ordering: .relaxed) }
  // The note comes before the look for an endpoint: pairs with `adopt`.
  mn_fence()
  guard unsafe socket.pointee.endpoint != nil else { return result }
  unsafe Socket.setFlag(socket, Int(socket.pointee.shut.load(ordering: .relaxed)), true)
  unsafe Wait.signal(socket, Socket.word(socket, Int(MN_OFFSET_ENDPOINT_RX_WAIT)))
  return unsafe result != 0 && Socket.peer(socket) != nil ? 0 : result
}

/// O_NONBLOCK or O_ASYNC has changed (fcntl or ioctl). They belong to the open file, so forked processes share them.
@c(mn_hook_flags_changed)
public func flagsChanged(_ entry: UnsafeMutableRawPointer, _ fd: Int32) {
  guard let socket = unsafe Socket.from(entry) else { return }
  // The kernel sends SIGIO for what reaches the shadow, and for nothing else.
  if mn_sys_fcntl(fd, Int32(MN_F_GETFL), 0) & Int32(MN_O_ASYNC) != 0 { unsafe Socket.retire(socket, .forGood, fd) }
  unsafe Socket.noteSetting(socket)
  if let endpoint = unsafe socket.pointee.endpoint { unsafe Socket.readFileFlags(endpoint, fd) }
}

/// SIOCGSTAMP, SIOCGSTAMPNS: when the datagram came that was received last.
///
/// - Parameter result: what the kernel has said of the shadow.
@c(mn_hook_stamp)
public func stamp(
  _ entry: UnsafeMutableRawPointer, _ inNanoseconds: Bool, _ stamp: UnsafeMutablePointer<Int64>?, _ result: Int32
) -> Int32 {
  guard let socket = unsafe Socket.from(entry), unsafe !socket.byShadow, unsafe socket.pointee.stamp != 0,
    let stamp = unsafe stamp
  else { return result }
  let time = unsafe Int64(socket.pointee.stamp)
  unsafe stamp[0] = time / 1_000_000_000
  unsafe stamp[1] = inNanoseconds ? time % 1_000_000_000 : time % 1_000_000_000 / 1000
  return 0
}

/// Bits of SO_TIMESTAMPING (Documentation/networking/timestamping.rst of the kernel).
enum Stamping {
  /// SOF_TIMESTAMPING_RX_SOFTWARE and SOF_TIMESTAMPING_SOFTWARE.
  static let take: Int32 = 1 << 3
  static let report: Int32 = 1 << 4
  /// Those two, and the ones that ask a NIC for what it has not got.
  static let understood: Int32 = 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6
}

extension Socket {
  /// Whether an option that the program has just set makes the socket the kernel's: what only it can do with datagrams.
  static func isKernelsAlone(_ level: Int32, _ name: Int32, _ value: UnsafeRawPointer, _ length: UInt32) -> Bool {
    // (IP options may be of one byte.)
    let number = unsafe length >= 4 ? value.loadUnaligned(as: Int32.self) : length >= 1 ? Int32(value.load(as: UInt8.self)) : 0
    switch (Int(level), Int(name)) {
    case (MN_SOL_SOCKET, MN_SO_PEEK_OFF): return number >= 0
    case (MN_SOL_SOCKET, MN_SO_TIMESTAMPING): return number & ~Stamping.understood != 0
    case (MN_SOL_SOCKET, MN_SO_ATTACH_FILTER), (MN_SOL_SOCKET, MN_SO_ATTACH_BPF), (MN_SOL_SOCKET, MN_SO_LOCK_FILTER): return true
    case (MN_SOL_SOCKET, MN_SO_BINDTODEVICE):
      // Datagrams of one host travel by "lo"; any other device has none of them.
      let isNone = unsafe length == 0 || value.load(as: UInt8.self) == 0
      let isLoopback = unsafe length >= 2 && value.loadUnaligned(as: UInt16.self).littleEndian == 0x6f6c /* "lo" */
        && (length == 2 || value.load(fromByteOffset: 2, as: UInt8.self) == 0)
      return !isNone && !isLoopback
    case (MN_IPPROTO_IP, MN_IP_OPTIONS): return length > 0
    case (MN_IPPROTO_IP, MN_IP_RECVORIGDSTADDR), (MN_IPPROTO_IP, MN_IP_CHECKSUM), (MN_IPPROTO_IP, MN_IP_RECVOPTS),
      (MN_IPPROTO_IP, MN_IP_RETOPTS), (MN_IPPROTO_IP, MN_IP_PASSSEC), (MN_IPPROTO_IP, MN_IP_RECVFRAGSIZE),
      (MN_IPPROTO_IP, MN_IP_MINTTL), (MN_IPPROTO_UDP, MN_UDP_ENCAP):
      return number != 0
    default: return false
    }
  }
}

/// FIONREAD: the size of the next datagram, wherever it waits.
@c(mn_hook_fionread)
public func fionread(_ entry: UnsafeMutableRawPointer, _ fd: Int32, _ value: UnsafeMutablePointer<Int32>) -> Int32 {
  if let socket = unsafe Socket.from(entry), unsafe socket.pointee.endpoint != nil,
    let size = unsafe Socket.nextSizeOnceLanded(socket)
  {
    unsafe value.pointee = Int32(size)
    return 0
  }
  return unsafe mn_real_ioctl(fd, UInt64(MN_FIONREAD), value)
}

/// SIOCOUTQ: what the engine has not taken yet, and what the kernel has not sent yet.
@c(mn_hook_outq)
public func outq(_ entry: UnsafeMutableRawPointer, _ fd: Int32, _ value: UnsafeMutablePointer<Int32>) -> Int32 {
  let result = unsafe mn_real_ioctl(fd, UInt64(MN_TIOCOUTQ), value)
  if result == 0, let socket = unsafe Socket.from(entry), unsafe socket.pointee.isOffloaded {
    unsafe value.pointee &+= Int32(clamping: Socket.unsent(socket))
  }
  return result
}

extension Socket {
  static func nextSizeOnceLanded(_ socket: SocketPointer) -> Int? {
    if let size = unsafe nextSize(socket) { return size }
    Wait.letLand()
    return unsafe nextSize(socket)
  }

  private static func nextSize(_ socket: SocketPointer) -> Int? {
    if unsafe !hasInput(socket) { return nil }
    let endpoint = unsafe socket.pointee.endpoint.unsafelyUnwrapped
    let lock = unsafe UnsafeMutableRawPointer(endpoint) + Int(MN_OFFSET_ENDPOINT_RX_LOCK)
    guard unsafe Lock.acquire(lock) else { return nil }
    defer { unsafe Lock.release(lock) }
    if unsafe socket.pointee.endpoint != endpoint { return nil }
    for engine in 0..<(unsafe socket.pointee.readerCount) {
      let reader = unsafe socket.pointee.readers + engine
      unsafe reader.pointee.resume()
      if case .record(let record) = unsafe reader.pointee.peek() { return record.length }
    }
    return nil
  }
}
