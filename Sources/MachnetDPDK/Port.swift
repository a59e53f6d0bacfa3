import CDPDK
import Glibc

/// A NIC port, or what a driver offers as one: `queues` pairs of an rx and a tx queue and the pool of their packets.
///
/// Only what every cloud vNIC has is asked for: packets in and out, one queue pair per engine, 256 descriptors.
@safe
public final class Port: @unchecked Sendable {
  public struct Options: Sendable {
    public var device: Device
    /// Pairs: 1...16.
    public var queues = 1
    /// Of each queue; the driver rounds it to what it can.
    public var descriptors = 256
    /// Bytes; nil: what the device has.
    public var mtu: Int?
    /// In the pool; nil: what `queues` engines can hold.
    public var packets: Int?

    public init(device: Device) { self.device = device }
  }

  public let device: Device
  /// DPDK's.
  public let number: UInt16
  public let queues: Int
  /// The Ethernet address in the 48 low bits, the first octet on the wire the highest.
  public let mac: UInt64
  /// Largest IPv4 packet, bytes.
  public let mtu: Int
  /// NUMA node; nil where the machine has one, or does not say.
  public let node: Int?

  /// Safety: made by `init`, freed by `close`; the queues are gone by then.
  let pool: UnsafeMutableRawPointer
  /// Safety: a counter per queue, written by the queue's thread; made by `init`, freed with the port.
  let discarded: UnsafeMutablePointer<UInt64>
  private let interrupts: [Interrupt]
  private var isOpen = true

  /// How a sleeping engine hears of packets on a queue.
  enum Interrupt: Sendable {
    /// The driver's own: armed before every sleep.
    case driver(Int32)
    /// The queue's socket in the kernel, which is always readable when there are packets.
    case socket(Int32)
    case none
  }

  /// Takes the device, configures and starts it.
  ///
  /// - Throws: with what was being done: ENODEV where there is no such device, EINVAL for more queues than it has, ENOMEM.
  public init(_ options: Options) throws(DPDKError) {
    device = options.device
    let name = device.name
    let sockets = Port.packetSockets()
    number = try Port.take(device)
    var discardPort = true
    let number = self.number
    defer { if discardPort { mn_dpdk_port_close(number) } }

    var limits = mn_dpdk_limits()
    try unsafe check(mn_dpdk_limits(number, &limits), "ask \(name) what it can do")
    let most = Int(min(limits.rx_queues, limits.tx_queues, 16))
    guard (1...max(1, most)).contains(options.queues) else {
      throw DPDKError(EINVAL, "use \(options.queues) queues of \(name), which has \(most)")
    }
    queues = options.queues
    let mtu = options.mtu ?? Int(limits.mtu)
    // RFC 791 asks every host to take 576 bytes.
    guard (576...max(576, Int(limits.mtu_max))).contains(mtu) else {
      throw DPDKError(EINVAL, "use an MTU of \(mtu) on \(name), which takes up to \(limits.mtu_max)")
    }
    node = limits.socket < 0 ? nil : Int(limits.socket)

    var error: Int32 = 0
    // Both rings full, what an engine holds (stash, queue, spent), and what the pool's cache holds back. One less than a
    // power of two is what the pool's ring is best at.
    let packets = options.packets ?? (queues * 4096 - 1)
    // A frame in one piece: header, a VLAN tag or two, and the check sequence where a device leaves it on.
    let room = max(2048, (mtu + 26 + 63) & ~63)
    guard
      let pool = unsafe mn_dpdk_pool("packets-\(number)", UInt32(packets), UInt32(room), limits.socket, &error)
    else { throw DPDKError(error, "make a pool of \(packets) packets for \(name)") }
    unsafe self.pool = pool
    var discardPool = true
    defer { if discardPool { unsafe mn_dpdk_pool_free(pool) } }

    // Drivers without interrupts ignore the wish, or refuse the port because of it.
    do {
      try unsafe Port.begin(number, options, mtu, pool, interrupts: true, name)
    } catch {
      mn_dpdk_port_stop(number)
      try unsafe Port.begin(number, options, mtu, pool, interrupts: false, name)
    }
    var mac: UInt64 = 0
    try unsafe check(mn_dpdk_mac(number, &mac), "read the Ethernet address of \(name)")
    self.mac = mac
    self.mtu = Int(try check(mn_dpdk_mtu(number), "read the MTU of \(name)"))

    let ownSockets = Port.packetSockets().filter { !sockets.contains($0) }
    interrupts = (0..<options.queues).map { queue in
      let descriptor = mn_dpdk_interrupt(number, UInt16(queue))
      if descriptor >= 0 { return .driver(descriptor) }
      // Drivers over kernel sockets open one per queue, in the queues' order.
      return ownSockets.count == options.queues ? .socket(ownSockets[queue]) : .none
    }
    unsafe discarded = .allocate(capacity: options.queues)
    unsafe discarded.initialize(repeating: 0, count: options.queues)
    discardPort = false
    discardPool = false
  }

  deinit {
    close()
    unsafe discarded.deallocate()
  }

  /// Stops the port and gives its device back. No queue of it may be in use any more, nor a packet of its pool.
  public func close() {
    guard isOpen else { return }
    isOpen = false
    mn_dpdk_port_stop(number)
    mn_dpdk_port_close(number)
    unsafe mn_dpdk_pool_free(pool)
  }

  public var isLinkUp: Bool { mn_dpdk_link_is_up(number) }

  /// Packets of the pool that nobody holds.
  public var packetsAvailable: Int { Int(unsafe mn_dpdk_pool_available(pool)) }

  /// What the driver has counted since the start.
  public struct Statistics: Sendable, Equatable {
    public var receivedPackets, sentPackets, receivedBytes, sentBytes: UInt64
    /// Because the queue was full.
    public var missed: UInt64
    /// Because they were broken.
    public var receiveErrors: UInt64
    /// Because the pool was empty.
    public var noPacket: UInt64
    public var sendErrors: UInt64
    /// In more pieces than fit into one buffer.
    public var segmented: UInt64
  }

  /// Any thread may ask.
  public func statistics() -> Statistics {
    var counted = mn_dpdk_stats()
    _ = unsafe mn_dpdk_stats(number, &counted)
    let segmented = (0..<queues).reduce(0) { unsafe $0 + mn_dpdk_counted(discarded + $1) }
    return Statistics(
      receivedPackets: counted.rx_packets, sentPackets: counted.tx_packets, receivedBytes: counted.rx_bytes,
      sentBytes: counted.tx_bytes, missed: counted.rx_missed, receiveErrors: counted.rx_errors,
      noPacket: counted.rx_no_packet, sendErrors: counted.tx_errors, segmented: segmented)
  }

  func interrupt(_ queue: Int) -> Interrupt { interrupts[queue] }

  /// - Returns: the port on the device.
  private static func take(_ device: Device) throws(DPDKError) -> UInt16 {
    if case .vdev(let text) = device {
      let complete = Device.completed(text)
      if complete.contains("role=server") || complete.contains("role=master"), let path = Device.memifSocket(complete) {
        Device.removeStaleSocket(path)
      }
      // A name that is in use already would give us the other's port.
      guard unsafe mn_dpdk_port(device.name) < 0 else { throw DPDKError(EEXIST, "make a second \(device.name)") }
      try unsafe check(mn_dpdk_probe(complete), "make \(complete)")
    }
    return UInt16(try unsafe check(mn_dpdk_port(device.name), "find a port on \(device.name)"))
  }

  private static func begin(
    _ number: UInt16, _ options: Options, _ mtu: Int, _ pool: UnsafeMutableRawPointer, interrupts: Bool, _ name: String
  ) throws(DPDKError) {
    try unsafe check(
      mn_dpdk_configure(
        number, UInt16(options.queues), UInt16(options.descriptors), UInt16(mtu), pool, interrupts),
      "configure \(name)")
    try check(mn_dpdk_port_start(number), "start \(name)")
  }

  /// Descriptors of sockets that carry packets (AF_PACKET, AF_XDP), ascending.
  private static func packetSockets() -> [Int32] {
    guard let stream = unsafe opendir("/proc/self/fd") else { return [] }
    defer { unsafe closedir(stream) }
    var sockets: [Int32] = []
    while let entry = unsafe readdir(stream) {
      let name = unsafe withUnsafeBytes(of: &entry.pointee.d_name) { bytes in
        unsafe String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
      }
      guard let descriptor = Int32(name) else { continue }
      var domain: Int32 = 0
      var size = socklen_t(MemoryLayout<Int32>.size)
      guard unsafe getsockopt(descriptor, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 else { continue }
      if domain == AF_PACKET || domain == 44 /* AF_XDP */ { sockets.append(descriptor) }
    }
    return sockets.sorted()
  }
}
