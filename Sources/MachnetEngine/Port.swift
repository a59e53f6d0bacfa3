import CMachnetABI
import MachnetMemory
import MachnetWire

/// One queue of one port as the core sees it: frames to go, empty packets to fill, packets to give back. The shell
/// moves them between here and the port's `PacketIO`.
@safe
struct Port {
  var address: UInt32
  var mask: UInt32
  var gateway: UInt32
  var mac: UInt64
  /// Largest IPv4 packet, bytes.
  var mtu: Int
  var interface: UInt32

  /// Frames to transmit, in order, from `queueHead` to `queueTail`: free-running numbers, places modulo `queueMax`.
  let queue = Table<Packet>(count: Port.queueMax)
  var queueHead = 0
  var queueTail = 0
  /// Up to where a capture has seen the queue: a frame that the port did not take is offered again.
  var queueCaptured = 0
  /// Since when the port has taken nothing of what is queued; 0: it has.
  var blockedSince: UInt64 = 0
  /// The port took nothing for too long: frames are dropped until it takes one again.
  var isBlocked = false

  /// Empty packets.
  let stash = Table<Packet>(count: Port.stashMax)
  var stashCount = 0
  /// The burst that is being received.
  let burst = Table<Packet>(count: packetBurst)
  /// Packets to give back to the pool.
  let spent = Table<Packet>(count: Port.spentMax)
  var spentCount = 0

  var neighbours = Neighbours()
  /// How the frames of each session begin; zeroes: not known yet.
  let heads: Table<FrameHead>
  /// Whether the link was up at the last look.
  var isUp = false

  static var queueMax: Int { 256 }
  /// Enough for the most fragments that one datagram can take (119, at an MTU of 576) after any refill by bursts.
  static var stashMax: Int { 256 }
  /// Between two returns to the pool: a burst, all that waited for neighbours, a stash and a queue.
  static var spentMax: Int { 1024 }
  /// How long a queue that does not move keeps its frames, ns.
  static var blockedMax: UInt64 { 10_000_000 }

  init(_ options: InterfaceOptions, sessions: Int) {
    heads = Table(count: sessions)
    address = options.address
    mask = options.mask
    gateway = options.gateway
    mac = options.mac
    mtu = options.mtu
    interface = options.index
  }

  @inline(__always)
  var queued: Int { @_noLocks get { queueTail &- queueHead } }
  @inline(__always)
  var room: Int { @_noLocks get { Port.queueMax &- queued } }

  func release() {
    queue.release()
    stash.release()
    burst.release()
    spent.release()
    heads.release()
    neighbours.release()
  }
}
