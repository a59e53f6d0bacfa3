public import CMachnetABI
public import CTrampoline
import ShimChannel
import Synchronization

/// Where a socket's last datagram went by a ring, and what was so then: while all of it is still so, the next one may go
/// there without being classified. Read and written under the endpoint's `tx_lock`.
@safe
struct Plan {
  /// The endpoint that it is of; nil: none.
  var block: UnsafeMutablePointer<mn_endpoint>? = nil
  /// mn_flow_key of the destination, with the rules' generation.
  var key: UInt64 = 0
  /// The peer is the destination: what `key` is for a call without a name.
  var isPeer = false
  var directory: Directory? = nil
  /// `Directory.departures` before the destination was looked up.
  var departures: UInt32 = 0
  /// MN_SOCKET_* of the endpoint.
  var state: UInt32 = 0
  /// Peer port, segment, time to live, type of service, and whether these two are set: eight bytes of `mn_endpoint`.
  var options: UInt64 = 0
  /// Words 0 (but for the length), 1 and 5 of the record (`mn_record`).
  var kind: UInt64 = 0
  var ports: UInt64 = 0
  var remote: UInt64 = 0
  /// The ready bit, where it stands, and the word in which the home engine says that it sleeps.
  var readyBit: UInt64 = 0
  var ready: UnsafeMutableRawPointer? = nil
  var sleeping: UnsafeMutableRawPointer? = nil
}

/// The short ways of what programs do most: one buffer to where the last datagram went, one buffer from a ring that has
/// something. Whatever is not as usual is found before anything is changed, and goes the long way (`Socket.send`,
/// `Socket.receive`), which is the definition of what a call does.
extension Socket {
  /// The long way has just put a datagram to `destination` into the ring.
  ///
  /// - Parameters:
  ///   - departures: of the directory, read before the destination was looked up.
  ///   - attachments: of the socket, read before the directory.
  @inline(never)
  static func plan(
    _ socket: SocketPointer, _ directory: Directory, _ destination: Name, _ judgement: Judgement, _ departures: UInt32, _ attachments: UInt32
  ) {
    unsafe mn_head_set_quick(socket, true)
    let endpoint = unsafe socket.pointee.endpoint.unsafelyUnwrapped
    let home = unsafe socket.pointee.home
    let (ready, readyBit) = unsafe readyBit(socket)
    let lock = unsafe UnsafeMutableRawPointer(endpoint) + Int(MN_OFFSET_ENDPOINT_TX_LOCK)
    guard unsafe Lock.acquire(lock) else { return }
    defer { unsafe Lock.release(lock) }
    let state = unsafe flags(socket)
    let options = unsafe mn_load_relaxed_u64(word(socket, Int(MN_OFFSET_ENDPOINT_PEER_PORT)))
    unsafe socket.pointee.plan.block = nil
    // Time to live and type of service stated, as by every attachment; no segments; fragments allowed; open.
    guard UInt16(truncatingIfNeeded: options >> 16) == 0, options >> 48 == 0x0101,
      unsafe mn_endpoint_mtu_discover(endpoint) != UInt32(MN_IP_PMTUDISC_DO), state & UInt32(MN_SOCKET_SHUTDOWN_WRITE) == 0,
      // Something has changed since the datagram was judged, or is changing: what was noted may be the old endpoint's. Whoever changes
      // it comes here for `block` next, and waits for the lock.
      attachments & 1 == 0, unsafe socket.pointee.attachments.load(ordering: .acquiring) == attachments,
      unsafe !socket.pointee.engineLost
    else { return }
    let flags = UInt64(judgement.recordFlags) | UInt64(MN_RECORD_TTL | MN_RECORD_TOS)
    unsafe socket.pointee.plan = Plan(
      block: endpoint,
      key: mn_flow_key(
        mn_head_family(socket), destination.port.bigEndian, destination.address.bigEndian, mn_rules_as_now(judgement.generation)),
      isPeer: peer(socket) == destination, directory: directory, departures: departures, state: state, options: options,
      kind: UInt64(MN_RECORD_DATAGRAM) << 32 | flags << 48,
      ports: UInt64(destination.port) | (options >> 32 & 0xffff) << 48,
      remote: UInt64(UInt32(0xffff).bigEndian) | UInt64(destination.address.bigEndian) << 32,
      readyBit: readyBit,
      ready: ready,
      sleeping: directory.engineWord(home))
  }

  /// - Returns: false when it has to go the long way; nothing has happened then.
  @inline(__always)
  fileprivate static func sendQuickly(
    _ socket: SocketPointer, _ data: UnsafeRawPointer, _ size: Int, _ flags: Int32, _ address: UnsafeRawPointer?, _ length: UInt32
  ) -> Bool {
    // (Without an endpoint: another thread has closed the one that was meant, and the number is a new socket's.)
    guard flags & ~Int32(MN_MSG_DONTWAIT | MN_MSG_NOSIGNAL) == 0, UInt(bitPattern: size) <= UInt(MN_DATAGRAM_MAX),
      let endpoint = unsafe socket.pointee.endpoint
    else { return false }
    let block = UnsafeMutableRawPointer(endpoint)
    guard unsafe mn_compare_exchange_u32(block + Int(MN_OFFSET_ENDPOINT_TX_LOCK), 0, mn_thread_id()) else { return false }
    planned: do {
      guard unsafe socket.pointee.plan.block == endpoint, mn_departed_until() == 0 else { break planned }
      let directory = unsafe socket.pointee.plan.directory.unsafelyUnwrapped
      guard unsafe socket.pointee.plan.departures == directory.departures,
        unsafe socket.pointee.plan.state == mn_load_relaxed_u32(block + Int(MN_OFFSET_ENDPOINT_FLAGS)),
        unsafe socket.pointee.plan.options == mn_load_relaxed_u64(block + Int(MN_OFFSET_ENDPOINT_PEER_PORT)),
        unsafe mn_load_relaxed_u32(block + Int(MN_OFFSET_ENDPOINT_ERROR)) == 0
      else { break planned }
      if let address = unsafe address {
        guard length == 16, unsafe socket.pointee.plan.key == address.loadUnaligned(as: UInt64.self) ^ UInt64(mn_rules_now()) else { break planned }
      } else {
        // The port is in `options`, that it is connected in `state`; the family is the socket's.
        guard unsafe socket.pointee.plan.isPeer,
          unsafe UInt32(truncatingIfNeeded: socket.pointee.plan.key >> 32) == mn_load_relaxed_u32(block + Int(MN_OFFSET_ENDPOINT_PEER_ADDRESS)),
          unsafe UInt16(truncatingIfNeeded: socket.pointee.plan.key) == UInt16(truncatingIfNeeded: mn_head_family(socket)) ^ mn_rules_now()
        else { break planned }
      }
      let writer = unsafe socket.pointee.writer
      let tail = unsafe block + Int(MN_OFFSET_ENDPOINT_TX_TAIL)
      guard let (record, next) = unsafe writer.pointee.reserveAhead(size, at: tail) else { break planned }
      let header = unsafe record.base
      unsafe header.storeBytes(of: socket.pointee.plan.kind | UInt64(size), as: UInt64.self)
      unsafe header.storeBytes(of: socket.pointee.plan.ports, toByteOffset: 8, as: UInt64.self)
      unsafe header.storeBytes(of: 0, toByteOffset: 32, as: UInt64.self)
      unsafe header.storeBytes(of: socket.pointee.plan.remote, toByteOffset: 40, as: UInt64.self)
      unsafe mn_copy(record.payload, data, size)
      unsafe writer.pointee.publishAhead(next, at: tail)
      let ready = unsafe socket.pointee.plan.ready.unsafelyUnwrapped
      let bit = unsafe socket.pointee.plan.readyBit
      let sleeping = unsafe socket.pointee.plan.sleeping.unsafelyUnwrapped
      unsafe Lock.release(block + Int(MN_OFFSET_ENDPOINT_TX_LOCK))
      if unsafe !mn_is_sender(socket) { unsafe mn_sender_note(socket) }
      // As `ring`: the published tail comes before both looks.
      mn_fence()
      if unsafe mn_load_relaxed_u64(ready) & bit == 0 || mn_load_relaxed_u32(sleeping) != 0 { unsafe ring(socket, directory) }
      return true
    }
    unsafe Lock.release(block + Int(MN_OFFSET_ENDPOINT_TX_LOCK))
    return false
  }

  /// - Returns: the datagram's size; -1 when the call has to go the long way: nothing has happened then.
  @inline(__always)
  fileprivate static func receiveQuickly(
    _ socket: SocketPointer, _ data: UnsafeMutableRawPointer, _ size: Int, _ flags: Int32, _ address: UnsafeMutableRawPointer?,
    _ length: UnsafeMutablePointer<UInt32>?
  ) -> Int {
    let turn = unsafe socket.pointee.turn &+ 1
    // (Of these flags two mean nothing to a receive of datagrams.)
    guard flags & ~Int32(MN_MSG_DONTWAIT | MN_MSG_NOSIGNAL | MN_MSG_WAITALL) == 0, size >= 0, turn & (shadowEvery &- 1) != 0,
      let endpoint = unsafe socket.pointee.endpoint
    else { return -1 }
    if unsafe address != nil, unsafe length == nil || Int32(bitPattern: length.unsafelyUnwrapped.pointee) < 0 { return -1 }
    let block = UnsafeMutableRawPointer(endpoint)
    if unsafe mn_load_relaxed_u32(block + Int(MN_OFFSET_ENDPOINT_ERROR)) != 0 { return -1 }
    var engine = unsafe socket.pointee.firstReader
    if unsafe engine >= socket.pointee.readerCount { engine = 0 }
    guard unsafe mn_compare_exchange_u32(block + Int(MN_OFFSET_ENDPOINT_RX_LOCK), 0, mn_thread_id()) else { return -1 }
    let reader = unsafe socket.pointee.readers + engine
    // (Another thread may have shown the socket to a new daemon meanwhile: the lock is the old one's. What has to be cut takes the
    // long way, where recvmsg learns of it.)
    guard unsafe socket.pointee.endpoint == endpoint, let (record, next) = unsafe reader.pointee.peekAhead(), record.length <= size else {
      unsafe Lock.release(block + Int(MN_OFFSET_ENDPOINT_RX_LOCK))
      return -1
    }
    unsafe socket.pointee.turn = turn
    unsafe socket.pointee.firstReader = engine &+ 1
    let header = unsafe record.header
    unsafe socket.pointee.stamp = header.pointee.timestamp
    unsafe mn_copy(data, record.payload, record.length)
    if unsafe header.pointee.flags & UInt16(MN_RECORD_CHARGED) != 0 {
      unsafe reader.pointee.take(charge: mn_charge(UInt32(truncatingIfNeeded: record.length)))
    }
    if unsafe address != nil { unsafe storeSender(socket, record, address, length) }
    unsafe reader.pointee.publishAhead(next)
    unsafe Lock.release(block + Int(MN_OFFSET_ENDPOINT_RX_LOCK))
    return record.length
  }

  @inline(never)
  private static func storeSender(
    _ socket: SocketPointer, _ record: Record, _ address: UnsafeMutableRawPointer?, _ length: UnsafeMutablePointer<UInt32>?
  ) {
    let header = unsafe record.header
    unsafe Name(mapped: header.pointee.remote, port: header.pointee.remote_port)
      .store(address, length, domain: socket.pointee.domain)
  }
}

/// Beside a descriptor that is received from: it has been waited for once. In place of one that is sent to: the call has no other way
/// here, and says Int.min.
let quickOnly: UInt64 = 1 << 63
/// In place of a descriptor that is received from: the call has no other way here, and says -1.
let quickAlone: UInt64 = 0xffff_ffff << 32

/// sendto(2) on a socket whose last datagram went to a ring.
///
/// - Parameters:
///   - entry: of the descriptor, as the trampoline has just found it.
///   - call: the descriptor (high half) and the flags (low half): as many words as there are registers for.
@c(mn_quick_sendto) @_optimize(speed) @inline(never)
public func quickSendTo(
  _ entry: UnsafeMutableRawPointer, _ data: UnsafeRawPointer, _ size: Int, _ call: UInt64, _ address: UnsafeRawPointer?, _ length: UInt32
) -> Int {
  let flags = Int32(truncatingIfNeeded: call)
  // (Epolls have no such rings, whatever the word says that the trampoline went by.)
  if unsafe mn_head_receive(entry) == UInt32(MN_RECEIVE_LOOK),
    unsafe Socket.sendQuickly(entry.assumingMemoryBound(to: Socket.self), data, size, flags, address, length)
  {
    return size
  }
  if call & quickOnly != 0 { return Int.min }
  return unsafe Int(mn_slow_sendto(Int32(truncatingIfNeeded: call >> 32), data, size, flags, address, length))
}

/// recvfrom(2) on a socket whose last datagram came by a ring, and whose head says MN_RECEIVE_LOOK. As `quickSendTo`.
@c(mn_quick_recvfrom) @_optimize(speed) @inline(never)
public func quickReceiveFrom(
  _ entry: UnsafeMutableRawPointer, _ data: UnsafeMutableRawPointer, _ size: Int, _ call: UInt64, _ address: UnsafeMutableRawPointer?,
  _ length: UnsafeMutablePointer<UInt32>?
) -> Int {
  let flags = Int32(truncatingIfNeeded: call)
  let taken = unsafe Socket.receiveQuickly(entry.assumingMemoryBound(to: Socket.self), data, size, flags, address, length)
  return taken >= 0 ? taken : unsafe receiveLater(entry, data, size, call, address, length)
}

/// The short way has found nothing (that it can deliver), for the first time or (`quickOnly`) for the second.
@inline(never)
private func receiveLater(
  _ entry: UnsafeMutableRawPointer, _ data: UnsafeMutableRawPointer, _ size: Int, _ call: UInt64, _ address: UnsafeMutableRawPointer?,
  _ length: UnsafeMutablePointer<UInt32>?
) -> Int {
  if call >= quickAlone { return -1 }
  let flags = Int32(truncatingIfNeeded: call)
  let number = Int32(truncatingIfNeeded: call >> 32) & Int32.max
  guard unsafe call & quickOnly == 0 && Wait.once(entry.assumingMemoryBound(to: Socket.self), number, flags) else {
    return unsafe Int(mn_slow_recvfrom(number, data, size, flags, address, length))
  }
  let result = unsafe quickReceiveFrom(entry, data, size, call | quickOnly, address, length)
  mn_look_ends()
  return result
}
