public import CMachnetABI
public import CTrampoline
import ShimChannel
import Synchronization

/// One receive call, however the program expressed it.
@safe
struct ReceiveCall {
  var fd: Int32
  var flags: Int32
  var vectors: UnsafeMutablePointer<mn_iovec>?
  var vectorCount: Int
  var name: UnsafeMutableRawPointer?
  var nameLength: UnsafeMutablePointer<UInt32>?
  /// Set for recvmsg and its like: control messages and msg_flags are wanted.
  var message: UnsafeMutablePointer<mn_msghdr>?

  /// The same call on the shadow, without waiting and without touching errno.
  ///
  /// - Returns: bytes, or a negative errno value.
  func onShadowWithoutWaiting() -> Int {
    let flags = self.flags | Int32(MN_MSG_DONTWAIT)
    if let message = unsafe message { return unsafe Int(mn_sys_recvmsg(fd, message, flags)) }
    let vector = unsafe vectors.unsafelyUnwrapped[0]
    return unsafe Int(mn_sys_recvfrom(fd, vector.base, vector.length, flags, name, nameLength))
  }

  /// The call as the program made it, on the shadow alone.
  func onShadow() -> Int {
    if let message = unsafe message { return unsafe Int(mn_real_recvmsg(fd, message, flags)) }
    let vector = unsafe vectors.unsafelyUnwrapped[0]
    return unsafe Int(mn_real_recvfrom(fd, vector.base, vector.length, flags, name, nameLength))
  }
}

/// How often the shadow is looked at while the rings have something: one receive in this many.
let shadowEvery: UInt32 = 64

extension Socket {
  /// Receives one datagram from the rings or the shadow, whichever has one.
  ///
  /// - Parameter mayWait: false makes a blocking socket answer EAGAIN (the later datagrams of recvmmsg).
  /// - Returns: as recvmsg(2), errno set on -1.
  @_optimize(speed)
  static func receive(_ socket: SocketPointer, _ call: ReceiveCall, mayWait: Bool = true) -> Int {
    let handled = Handled.atBegin
    guard call.flags & Int32(MN_MSG_ERRQUEUE) == 0 else { return call.onShadow() }
    if unsafe socket.pointee.endpoint == nil {
      guard unsafe socket.pointee.undecided else { return call.onShadow() }
      return unsafe receiveUndecided(socket, call, mayWait, handled)
    }
    if unsafe isWithdrawn(socket) { unsafe withdraw(socket) }
    let isLost = unsafe socket.pointee.engineLost
    if isLost {
      Loss.reattach()
      unsafe rejoin(socket)
    }
    if unsafe mn_load_relaxed_u32(word(socket, Int(MN_OFFSET_ENDPOINT_ERROR))) != 0 {
      let error = unsafe mn_exchange_u32(word(socket, Int(MN_OFFSET_ENDPOINT_ERROR)), 0)
      if error != 0 {
        mn_set_errno(Int32(truncatingIfNeeded: error))
        return -1
      }
    }
    unsafe socket.pointee.turn = socket.pointee.turn &+ 1
    // (What old rings hold is older than what the shadow holds.)
    let shadowFirst = unsafe socket.pointee.turn & (shadowEvery &- 1) == 0 && !isLost && !socket.pointee.isSettling
    if !shadowFirst, let size = unsafe take(socket, call) { return size }

    let waits = unsafe mayWait && !isNonblocking(socket, call.flags) && !socket.pointee.impatient
    if unsafe shadowFirst || !waits || socket.byShadow, let result = unsafe takeFromShadow(socket, call) { return result }
    if let size = unsafe take(socket, call) { return size }
    if waits { return unsafe receiveLater(socket, call, handled) ?? receiveStale(socket, call) }
    Wait.letLand()
    if let size = unsafe take(socket, call) { return size }
    if unsafe isStale(socket, call.fd) { return unsafe receiveStale(socket, call) }
    unsafe Wait.settle(socket)
    mn_cancellation_point()
    return fail(MN_EAGAIN)
  }

  /// The number means another file by now.
  @inline(never)
  private static func receiveStale(_ socket: SocketPointer, _ call: ReceiveCall) -> Int {
    unsafe closing(socket, call.fd)
    if let entry = unsafe mn_table_get(call.fd), UInt(bitPattern: entry) > 1, let other = unsafe from(entry), unsafe other != socket {
      return unsafe receive(other, call)
    }
    return call.onShadow()
  }

  /// - Returns: nil when the shadow has nothing.
  private static func takeFromShadow(_ socket: SocketPointer, _ call: ReceiveCall) -> Int? {
    let result = call.onShadowWithoutWaiting()
    if result == -MN_EAGAIN { return nil }
    if result < 0 { return fail(-result) }
    if let endpoint = unsafe socket.pointee.endpoint {
      unsafe mn_endpoint_count_received(endpoint, Int64(result))
    }
    unsafe socket.byShadow = true
    return result
  }

  /// A receive that has found nothing, and waits.
  ///
  /// - Parameter handled: when the call began.
  /// - Returns: nil when the number is stale.
  @inline(never)
  private static func receiveLater(_ socket: SocketPointer, _ call: ReceiveCall, _ handled: Handled) -> Int? {
    let number = call.fd
    if unsafe socket.pointee.endpoint != nil, let size = unsafe Wait.briefly(socket, number, handled, { unsafe take(socket, call) }) {
      return size
    }
    var call = call
    var mask: UInt64 = 0
    defer { unsafe letGo(socket, mask) }
    mn_has_unwind_tables()
    let isHeld = unsafe hold(socket, number, &mask)
    if handled.isChanged, let endpoint = unsafe socket.pointee.endpoint,
      let outcome = unsafe Wait.interrupted(socket, number, handled, restarts: mn_endpoint_receive_timeout(endpoint) == 0)
    {
      if case .failed(let error) = outcome { return fail(error) }
      return nil
    }
    if !isHeld { return fail(MN_EBADF) }
    let start = mn_sys_nanoseconds()
    while true {
      let waited: Waited
      // Nobody waits on a socket that is shut down (a receive that need not wait has said EAGAIN, as the kernel's does).
      if unsafe socket.pointee.shut.load(ordering: .relaxed) & UInt32(MN_SOCKET_SHUTDOWN_READ) != 0 { return 0 }
      if unsafe socket.pointee.endpoint == nil {
        // Another thread's send may lead the socket to Machnet at any moment: no sleep where only the kernel can end it.
        waited = unsafe Wait.undecided(socket, number, &call.fd, mask, since: start)
      } else {
        waited = unsafe Wait.readable(socket, number, &call.fd, mask)
      }
      if case .restarted = waited { return nil }
      if case .failed(let error) = waited {
        return unsafe error == MN_EBADF && mn_table_get(number) == UnsafeMutableRawPointer(socket) ? nil : fail(error)
      }
      if let size = unsafe take(socket, call) { return size }
      // An error for the socket: the first thing that a receive reports.
      if unsafe socket.pointee.endpoint != nil {
        let error = unsafe mn_exchange_u32(word(socket, Int(MN_OFFSET_ENDPOINT_ERROR)), 0)
        if error != 0 { return fail(Int(error)) }
      }
      unsafe call.fd = pin(socket, call.fd)
      if call.fd < 0 { return unsafe mn_table_get(number) == UnsafeMutableRawPointer(socket) ? nil : fail(MN_EBADF) }
      if let result = unsafe takeFromShadow(socket, call) { return result }
      if let size = unsafe take(socket, call) { return size }
    }
  }

  /// A receive on a socket that may get an endpoint yet.
  private static func receiveUndecided(_ socket: SocketPointer, _ call: ReceiveCall, _ mayWait: Bool, _ handled: Handled) -> Int {
    if let result = unsafe takeFromShadow(socket, call) { return result }
    if unsafe socket.pointee.awaits { Loss.reattach() }
    let file = mn_sys_fcntl(call.fd, Int32(MN_F_GETFL), 0)
    let nonblocking = call.flags & Int32(MN_MSG_DONTWAIT) != 0 || file < 0 || file & Int32(MN_O_NONBLOCK) != 0
    let waits = unsafe !nonblocking && mayWait && !socket.pointee.impatient
    return unsafe waits ? receiveLater(socket, call, handled) ?? receiveStale(socket, call) : fail(MN_EAGAIN)
  }

  /// Takes a datagram from the RX rings.
  ///
  /// - Returns: its size as the call is to report it; nil when the rings are empty.
  private static func take(_ socket: SocketPointer, _ call: ReceiveCall) -> Int? {
    if unsafe !hasInput(socket) { return nil }
    if unsafe socket.pointee.isSettling, let result = unsafe takeSettling(socket, call) { return result }
    let endpoint = unsafe socket.pointee.endpoint.unsafelyUnwrapped
    let lock = unsafe UnsafeMutableRawPointer(endpoint) + Int(MN_OFFSET_ENDPOINT_RX_LOCK)
    // A signal handler that interrupted a receive of its own thread finds nothing here.
    guard unsafe Lock.acquire(lock) else { return nil }
    defer { unsafe Lock.release(lock) }
    // (Another thread has just shown the socket to a new daemon: the lock is the old one's.)
    if unsafe socket.pointee.endpoint != endpoint { return nil }
    let count = unsafe socket.pointee.readerCount
    var tried = 0
    var engine = unsafe socket.pointee.firstReader
    while tried < count {
      if engine >= count { engine = 0 }
      let reader = unsafe socket.pointee.readers + engine
      unsafe reader.pointee.resume()
      switch unsafe reader.pointee.peek() {
      case .record(let record):
        let size = unsafe deliver(socket, record, call)
        unsafe socket.byShadow = socket.pointee.isSettling
        if call.flags & Int32(MN_MSG_PEEK) == 0 {
          if unsafe record.header.pointee.flags & UInt16(MN_RECORD_CHARGED) != 0 {
            unsafe reader.pointee.take(charge: mn_charge(UInt32(truncatingIfNeeded: record.length)))
          }
          unsafe reader.pointee.advance(record)
          unsafe reader.pointee.publish()
          // Rings are drained in turn, so that no engine's traffic starves another's.
          unsafe socket.pointee.firstReader = engine + 1
        } else {
          unsafe socket.pointee.firstReader = engine
        }
        return size
      case .empty:
        // `resume` may have stepped over a pad only.
        break
      case .damaged:
        unsafe mn_log(1, "ring of descriptor % is damaged", Int64(call.fd), 0)
        unsafe socket.pointee.engineLost = true
        unsafe forgetPlan(socket)
        return nil
      }
      tried += 1
      engine += 1
    }
    return nil
  }

  /// Takes what the shadow holds before what the rings hold, but not before what they hold up to their marks, which is older. (What
  /// is in the shadow by now came before what is in a ring by now, if one and the same sent both.)
  ///
  /// - Returns: nil when it is the rings' turn.
  @inline(never)
  private static func takeSettling(_ socket: SocketPointer, _ call: ReceiveCall) -> Int? {
    // Of a daemon that is no more, all is older, and as long as engines may still fill what is given up.
    if unsafe !socket.pointee.hasLiveRings || state(socket) == UInt32(MN_ENDPOINT_CLOSED) { return nil }
    let (channel, index) = unsafe socket.pointee.location
    for engine in 0..<(unsafe Int(channel.unsafelyUnwrapped.pointee.engineCount)) {
      let ring = unsafe channel.unsafelyUnwrapped.pointee.reader(index, engine)
      let head = unsafe mn_load_relaxed_u64(ring + 64)
      if unsafe Int64(bitPattern: head &- mn_load_relaxed_u64(ring + Int(MN_OFFSET_RING_MARK))) < 0 {
        unsafe socket.pointee.firstReader = engine
        return nil
      }
    }
    if let result = unsafe takeFromShadow(socket, call) { return result }
    if unsafe socket.pointee.isOffloaded {
      let now = mn_sys_nanoseconds()
      if unsafe socket.pointee.settlesUntil == 0 { unsafe socket.pointee.settlesUntil = now &+ settlement }
      if unsafe now > socket.pointee.settlesUntil { unsafe socket.pointee.isSettling = false }
    }
    return nil
  }

  /// Copies a datagram and what is known of it to the program.
  @inline(__always)
  private static func deliver(_ socket: SocketPointer, _ record: Record, _ call: ReceiveCall) -> Int {
    var from = unsafe record.payload
    var left = record.length
    var index = 0
    while left > 0, index < call.vectorCount {
      let vector = unsafe call.vectors.unsafelyUnwrapped[index]
      let size = unsafe min(vector.length, left)
      if size > 0, let base = unsafe vector.base { unsafe mn_copy(base, from, size) }
      unsafe from += size
      left -= size
      index += 1
    }
    let header = unsafe record.header
    unsafe socket.pointee.stamp = header.pointee.timestamp
    if unsafe call.name != nil {
      let sender = unsafe Name(mapped: header.pointee.remote, port: header.pointee.remote_port)
      if let message = unsafe call.message {
        unsafe withUnsafeMutablePointer(to: &message.pointee.name_length) {
          unsafe sender.store(call.name, $0, domain: socket.pointee.domain)
        }
      } else if let room = unsafe call.nameLength, unsafe Int32(bitPattern: room.pointee) < 0 {
        // As the kernel: the datagram is taken, and then its name has no place.
        mn_set_errno(Int32(MN_EINVAL))
        return -1
      } else {
        unsafe sender.store(call.name, call.nameLength, domain: socket.pointee.domain)
      }
    }
    if let message = unsafe call.message { unsafe describe(socket, record, message, asked: call.flags, truncated: left > 0) }
    return call.flags & Int32(MN_MSG_TRUNC) != 0 ? record.length : record.length - left
  }

  /// Whether the last datagram came by a ring, and is delivered without control messages. (Epolls have no rings.)
  @inline(__always)
  static func deliversPlainly(_ entry: UnsafeMutableRawPointer) -> Bool {
    let described =
      MN_SOCKET_TIMESTAMP | MN_SOCKET_TIMESTAMPNS | MN_SOCKET_TIMESTAMPING | MN_SOCKET_RXQ_OVFL | MN_SOCKET_GRO
      | MN_SOCKET_RECVPKTINFO6 | MN_SOCKET_PKTINFO | MN_SOCKET_RECVTTL | MN_SOCKET_RECVTOS
    guard unsafe mn_head_receive(entry) == UInt32(MN_RECEIVE_LOOK) && !mn_head_by_shadow(entry),
      let endpoint = unsafe entry.assumingMemoryBound(to: Socket.self).pointee.endpoint
    else { return false }
    return unsafe mn_load_relaxed_u32(UnsafeMutableRawPointer(endpoint) + Int(MN_OFFSET_ENDPOINT_FLAGS)) & UInt32(described) == 0
  }

  /// msg_flags and control messages, in the kernel's order (socket level first, then IPv6, then IP).
  ///
  /// - Parameter asked: the call's flags; the kernel shows MSG_CMSG_CLOEXEC back.
  private static func describe(
    _ socket: SocketPointer, _ record: Record, _ message: UnsafeMutablePointer<mn_msghdr>, asked: Int32, truncated: Bool
  ) {
    let flags = unsafe self.flags(socket)
    var writer = unsafe ControlWriter(base: message.pointee.control, room: message.pointee.control_length)
    let header = unsafe record.header
    if flags & UInt32(MN_SOCKET_TIMESTAMP) != 0 {
      let time = unsafe header.pointee.timestamp
      writer.put(MN_SOL_SOCKET, MN_SO_TIMESTAMP, (time / 1_000_000_000, time % 1_000_000_000 / 1000), size: 16)
    }
    if flags & UInt32(MN_SOCKET_TIMESTAMPNS) != 0 {
      let time = unsafe header.pointee.timestamp
      writer.put(MN_SOL_SOCKET, MN_SO_TIMESTAMPNS, (time / 1_000_000_000, time % 1_000_000_000), size: 16)
    }
    if flags & UInt32(MN_SOCKET_TIMESTAMPING) != 0 { unsafe writer.putStamps(header.pointee.timestamp) }
    if flags & UInt32(MN_SOCKET_RXQ_OVFL) != 0 {
      let drops = unsafe mn_load_relaxed_u64(word(socket, Int(MN_OFFSET_ENDPOINT_RX_DROPS)))
      if drops != 0 { writer.put(MN_SOL_SOCKET, MN_SO_RXQ_OVFL, (drops & 0xffff_ffff, 0), size: 4) }
    }
    if unsafe flags & UInt32(MN_SOCKET_GRO) != 0 && header.pointee.segment != 0 {
      unsafe writer.put(MN_IPPROTO_UDP, MN_UDP_GRO, (UInt64(header.pointee.segment), 0), size: 4)
    }
    if flags & UInt32(MN_SOCKET_RECVPKTINFO6) != 0 {
      unsafe writer.putPacketInfo6(header.pointee.local, interface: header.pointee.interface)
    }
    if flags & UInt32(MN_SOCKET_PKTINFO) != 0 {
      let to = unsafe UInt64(header.pointee.local.words.3)
      // in_pktinfo: interface, local address (spec_dst), destination address.
      unsafe writer.put(MN_IPPROTO_IP, MN_IP_PKTINFO, (UInt64(header.pointee.interface) | to << 32, to), size: 12)
    }
    if flags & UInt32(MN_SOCKET_RECVTTL) != 0 {
      unsafe writer.put(MN_IPPROTO_IP, MN_IP_TTL, (UInt64(header.pointee.ttl), 0), size: 4)
    }
    if flags & UInt32(MN_SOCKET_RECVTOS) != 0 {
      unsafe writer.put(MN_IPPROTO_IP, MN_IP_TOS, (UInt64(header.pointee.tos), 0), size: 1)
    }
    unsafe message.pointee.control_length = writer.used
    unsafe message.pointee.flags =
      Int32((truncated ? MN_MSG_TRUNC : 0) | (writer.truncated ? MN_MSG_CTRUNC : 0)) | asked & Int32(MN_MSG_CMSG_CLOEXEC)
  }
}

/// Writes control messages as put_cmsg of the kernel does: the last one is cut when there is no room for it.
@safe
private struct ControlWriter {
  private let base: UnsafeMutableRawPointer?
  private let room: Int
  private(set) var used = 0
  private(set) var truncated = false

  init(base: UnsafeMutableRawPointer?, room: Int) {
    unsafe self.base = base
    self.room = unsafe base == nil ? 0 : room
  }

  @inline(never)
  mutating func put(_ level: Int, _ type: Int, _ value: (UInt64, UInt64), size: Int) {
    var value = (value.0, value.1, UInt64(0))
    unsafe withUnsafeBytes(of: &value) { unsafe putBytes(level, type, $0.baseAddress!, size) }
  }

  /// SCM_TIMESTAMPING: software, a legacy one, hardware.
  mutating func putStamps(_ time: UInt64) {
    var value: InlineArray<6, UInt64> = .init(repeating: 0)
    value[0] = time / 1_000_000_000
    value[1] = time % 1_000_000_000
    unsafe withUnsafeBytes(of: &value) { unsafe putBytes(MN_SOL_SOCKET, MN_SO_TIMESTAMPING, $0.baseAddress!, 48) }
  }

  mutating func putPacketInfo6(_ address: mn_address, interface: UInt32) {
    var value = (address, interface, UInt32(0))
    unsafe withUnsafeBytes(of: &value) { unsafe putBytes(MN_IPPROTO_IPV6, MN_IPV6_PKTINFO, $0.baseAddress!, 20) }
  }

  @inline(never)
  private mutating func putBytes(_ level: Int, _ type: Int, _ data: UnsafeRawPointer, _ size: Int) {
    guard let base = unsafe base, room - used >= 16 else {
      truncated = true
      return
    }
    var length = 16 + size
    if length > room - used {
      truncated = true
      length = room - used
    }
    unsafe (base + used).storeBytes(of: mn_cmsghdr(length: length, level: Int32(level), type: Int32(type)), as: mn_cmsghdr.self)
    unsafe mn_copy(base + used + 16, data, length - 16)
    used += min((length + 7) & ~7, room - used)
  }
}

// ------------------------------------------------------------------------------------------------------------ hooks

@c(mn_hook_recvfrom)
public func recvfrom(
  _ entry: UnsafeMutableRawPointer, _ fd: Int32, _ data: UnsafeMutableRawPointer?, _ size: Int, _ flags: Int32,
  _ address: UnsafeMutableRawPointer?, _ length: UnsafeMutablePointer<UInt32>?
) -> Int {
  guard let socket = unsafe Socket.from(entry) else { return unsafe Int(mn_real_recvfrom(fd, data, size, flags, address, length)) }
  var vector = unsafe mn_iovec(base: data, length: size)
  return unsafe withUnsafeMutablePointer(to: &vector) { vector in
    let call = unsafe ReceiveCall(
      fd: fd, flags: flags, vectors: vector, vectorCount: 1, name: length == nil ? nil : address, nameLength: length, message: nil)
    return unsafe Socket.receive(socket, call)
  }
}

extension ReceiveCall {
  init?(_ fd: Int32, _ message: UnsafeMutablePointer<mn_msghdr>, _ flags: Int32) {
    let count = unsafe message.pointee.vector_count
    guard count >= 0, count <= 1024, unsafe count == 0 || message.pointee.vectors != nil,
      unsafe Int32(bitPattern: message.pointee.name_length) >= 0
    else { return nil }
    unsafe self.init(
      fd: fd, flags: flags, vectors: message.pointee.vectors, vectorCount: count, name: message.pointee.name, nameLength: nil,
      message: message)
  }
}

/// One message of recvmsg or recvmmsg. One buffer without control messages is what recvfrom fills, and takes its short way.
@inline(never)
private func receive(
  _ entry: UnsafeMutableRawPointer, _ fd: Int32, _ message: UnsafeMutablePointer<mn_msghdr>, _ flags: Int32, mayWait: Bool = true
) -> Int {
  if unsafe message.pointee.vector_count == 1 && Socket.deliversPlainly(entry), let vector = unsafe message.pointee.vectors,
    let data = unsafe vector.pointee.base
  {
    let taken = unsafe withUnsafeMutablePointer(to: &message.pointee.name_length) {
      unsafe quickReceiveFrom(
        entry, data, vector.pointee.length, quickAlone | UInt64(UInt32(bitPattern: flags)), message.pointee.name, $0)
    }
    if taken >= 0 {
      unsafe message.pointee.control_length = 0
      unsafe message.pointee.flags = 0
      return taken
    }
  }
  guard let socket = unsafe Socket.from(entry), let call = unsafe ReceiveCall(fd, message, flags),
    unsafe socket.pointee.endpoint != nil || mayWait
  else { return unsafe Int(mn_real_recvmsg(fd, message, mayWait ? flags : flags | Int32(MN_MSG_DONTWAIT))) }
  return unsafe Socket.receive(socket, call, mayWait: mayWait)
}

@c(mn_hook_recvmsg)
public func recvmsg(_ entry: UnsafeMutableRawPointer, _ fd: Int32, _ message: UnsafeMutablePointer<mn_msghdr>?, _ flags: Int32) -> Int {
  guard let message = unsafe message else { return Int(mn_real_recvmsg(fd, nil, flags)) }
  return unsafe receive(entry, fd, message, flags)
}

/// recvmmsg(2): waits for the first datagram as the socket says, for the later ones unless MSG_WAITFORONE; the timeout
/// is looked at after each datagram, as on the kernel (recvmmsg(2), BUGS).
@c(mn_hook_recvmmsg)
public func recvmmsg(
  _ entry: UnsafeMutableRawPointer, _ fd: Int32, _ messages: UnsafeMutablePointer<mn_mmsghdr>?, _ count: UInt32, _ flags: Int32,
  _ timeout: UnsafeMutablePointer<mn_timespec>?
) -> Int32 {
  guard let messages = unsafe messages else {
    mn_set_errno(Int32(MN_EFAULT))
    return -1
  }
  let saved = mn_get_errno()
  let start = unsafe timeout == nil ? 0 : mn_sys_nanoseconds()
  var limit: UInt64 = 0
  if let timeout = unsafe timeout {
    guard unsafe timeout.pointee.seconds >= 0, unsafe timeout.pointee.nanoseconds >= 0,
      unsafe timeout.pointee.nanoseconds < 1_000_000_000
    else {
      mn_set_errno(Int32(MN_EINVAL))
      return -1
    }
    limit = unsafe UInt64(min(timeout.pointee.seconds, 1 << 32)) * 1_000_000_000 + UInt64(timeout.pointee.nanoseconds)
  }
  var received: UInt32 = 0
  while received < min(count, 1024) {
    let message = unsafe messages + Int(received)
    let mayWait = received == 0 || flags & Int32(MN_MSG_WAITFORONE) == 0
    let callFlags = flags & ~Int32(MN_MSG_WAITFORONE)
    let result = unsafe withUnsafeMutablePointer(to: &message.pointee.header) {
      unsafe receive(entry, fd, $0, callFlags, mayWait: mayWait)
    }
    if result < 0 { break }
    unsafe message.pointee.length = UInt32(truncatingIfNeeded: result)
    received += 1
    if let timeout = unsafe timeout {
      let elapsed = mn_sys_nanoseconds() &- start
      let left = elapsed < limit ? limit - elapsed : 0
      unsafe timeout.pointee = mn_timespec(seconds: Int64(left / 1_000_000_000), nanoseconds: Int64(left % 1_000_000_000))
      if left == 0 { break }
    }
  }
  if received > 0 { mn_set_errno(saved) }
  return received > 0 || count == 0 ? Int32(received) : -1
}
