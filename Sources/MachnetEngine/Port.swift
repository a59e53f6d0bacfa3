import CMachnetABI

/// One queue of one port as the core sees it: frames to go, empty packets to fill, packets to give back. The shell
/// moves them between here and the port's `PacketIO`.
struct Port {
  var address: UInt32
  var mask: UInt32
  var gateway: UInt32
  var mac: UInt64
  /// Largest IPv4 packet, bytes.
  var mtu: Int
  var interface: UInt32

  /// Frames to transmit, in order: `queue[queueHead..<queueTail]`.
  let queue = Table<Packet>(count: Port.queueMax)
  var queueHead = 0
  var queueTail = 0
  /// Since when the queue has been full of frames that nobody takes; 0: it has not.
  var blockedSince: UInt64 = 0
  /// The port took nothing for too long: frames are dropped until it takes one again.
  var isBlocked = false

  /// Empty packets.
  let stash = Table<Packet>(count: Port.stashMax)
  var stashCount = 0
  /// Packets to give back to the pool.
  let spent = Table<Packet>(count: Port.spentMax)
  var spentCount = 0

  static var queueMax: Int { 256 }
  static var stashMax: Int { 128 }
  static var spentMax: Int { 512 }
  /// How long a queue that does not move keeps its frames, ns.
  static var blockedMax: UInt64 { 10_000_000 }

  init(_ options: InterfaceOptions) {
    address = options.address
    mask = options.mask
    gateway = options.gateway
    mac = options.mac
    mtu = options.mtu
    interface = options.index
  }

  func release() {
    queue.release()
    stash.release()
    spent.release()
  }
}
