import CDPDK
import CNuma
import Glibc
public import MachnetEngine

/// A started port: its queues are to be handed to engines.
public struct DPDKDevice: Sendable {
  /// DPDK's number of the port.
  public let number: UInt16
  /// Its Ethernet address, in the 48 low bits.
  public let mac: UInt64
  /// Of the IP layer, bytes.
  public let mtu: Int
  public let queues: Int
  /// NUMA node; -1: any.
  public let node: Int
  /// Whether queues can wake a sleeping engine.
  public let hasInterrupts: Bool
  /// Descriptors per queue, as granted: at most 256.
  public let descriptors: Int

  private let pools: [Pool]

  /// Safety: made by `start`, used by the queue's engine, freed by `close` when no engine is left.
  @safe
  private struct Pool: @unchecked Sendable {
    let pointer: UnsafeMutableRawPointer
  }

  /// Packets per queue: both rings full, and all that an engine can hold (a stash, a queue, a neighbour queue of 256
  /// each, and a cache and a half), as 2^n - 1, which is what a pool stores best.
  private static let poolSize: UInt32 = 2047

  /// Adds a device and starts it with what every cloud NIC has: plain queues of at most 256 descriptors.
  ///
  /// - Parameters:
  ///   - device: a PCI address, or a virtual device with its arguments ("net_memif0,role=server,socket=/run/x.sock").
  ///   - queues: one per engine.
  ///   - mtu: of the IP layer, bytes; 0: the driver's.
  public static func start(_ device: String, queues: Int = 1, mtu: Int = 0) throws(DPDKError) -> DPDKDevice {
    let number = UInt16(try unsafe DPDKError.check(mn_dpdk_attach(complete(device)), "attach \(device)"))
    do {
      return try start(number, device, queues: queues, mtu: mtu)
    } catch {
      _ = mn_dpdk_detach(number)
      throw error
    }
  }

  private static func start(_ number: UInt16, _ device: String, queues: Int, mtu: Int) throws(DPDKError) -> DPDKDevice {
    var description = mn_dpdk_port()
    _ = try DPDKError.check(unsafe mn_dpdk_port_describe(number, &description), "describe \(device)")
    guard queues >= 1, queues <= Int(description.max_queues) else {
      throw DPDKError(what: "open \(queues) queues of \(device), which has \(description.max_queues)", code: EINVAL)
    }
    // Frames are never spread over buffers: a buffer takes the largest, its Ethernet header and a VLAN tag.
    let room = UInt16(min(max(2048, max(mtu, Int(description.mtu)) + 22), 65_000))
    var pools: [Pool] = []
    for queue in 0..<queues {
      guard
        let pool = unsafe mn_dpdk_pool_make("machnet-\(number)-\(queue)", poolSize, room, description.socket)
      else {
        let code = mn_dpdk_error()
        for pool in pools { unsafe mn_dpdk_pool_free(pool.pointer) }
        throw DPDKError(what: "make a packet pool for \(device)", code: code)
      }
      unsafe pools.append(Pool(pointer: pool))
    }
    let pointers: [UnsafeMutableRawPointer?] = unsafe pools.map { unsafe $0.pointer }
    let status = unsafe mn_dpdk_port_start(number, UInt16(queues), pointers, UInt32(mtu), &description)
    if status < 0 {
      for pool in pools { unsafe mn_dpdk_pool_free(pool.pointer) }
      throw DPDKError(what: "start \(device)", code: -status)
    }
    return DPDKDevice(
      number: number, mac: description.mac, mtu: Int(description.mtu), queues: queues, node: Int(description.socket),
      hasInterrupts: description.has_rx_interrupt != 0, descriptors: Int(description.descriptors), pools: pools)
  }

  /// memif sockets are abstract unless told otherwise, which no other network namespace or container could find.
  static func complete(_ device: String) -> String {
    guard device.hasPrefix("net_memif"), device.contains("socket=/"), !device.contains("socket-abstract=") else {
      return device
    }
    return device + ",socket-abstract=no"
  }

  /// A queue's packet I/O. To be called on the thread that will use it: this makes it known to DPDK and places it near
  /// the port.
  public func open(queue: Int) -> DPDKPort {
    precondition(queue >= 0 && queue < queues)
    // Fails for a thread that is known already, which is as good.
    _ = mn_dpdk_register_thread()
    return unsafe DPDKPort(unsafe: pools[queue].pointer, port: number, queue: UInt16(queue), interrupts: hasInterrupts)
  }

  /// Lets the calling thread's memory come from the port's NUMA node. A pinned thread keeps its CPU.
  public func preferNode(pinned: Bool) {
    if pinned { mn_numa_prefer_memory(Int32(node)) } else { _ = mn_numa_prefer(Int32(node)) }
  }

  /// Stops and removes the port. No engine may use its queues any more.
  public func close() {
    _ = mn_dpdk_port_stop(number)
    _ = mn_dpdk_detach(number)
    for pool in pools { unsafe mn_dpdk_pool_free(pool.pointer) }
  }

  /// Packets that are out of the pools: in the port's rings, in engines, in caches.
  public var packetsInUse: Int { pools.reduce(0) { unsafe $0 + Int(mn_dpdk_pool_in_use($1.pointer)) } }
}

/// Packet I/O of one queue of one DPDK port, for one thread.
@safe
public struct DPDKPort: PacketIO, ~Copyable {
  /// Safety: outlives the value (see `DPDKDevice.close`).
  private let pool: UnsafeMutableRawPointer
  private let port: UInt16
  private let queue: UInt16
  public let wakeDescriptor: Int32
  /// Room for one burst, owned by the value.
  private let burst: UnsafeMutablePointer<UnsafeMutableRawPointer?>
  /// Received frames in several buffers, which no engine of ours asks for: dropped.
  public private(set) var chained = 0

  /// Safety: `pool` is the packet pool that the queue was set up with.
  fileprivate init(unsafe pool: UnsafeMutableRawPointer, port: UInt16, queue: UInt16, interrupts: Bool) {
    unsafe self.pool = pool
    self.port = port
    self.queue = queue
    unsafe burst = .allocate(capacity: packetBurst)
    unsafe burst.initialize(repeating: nil, count: packetBurst)
    // Some drivers show a descriptor but cannot arm it: those are polled.
    var descriptor = interrupts ? mn_dpdk_interrupt_descriptor(port, queue) : -1
    if descriptor >= 0 && mn_dpdk_interrupt_enable(port, queue) < 0 { descriptor = -1 }
    if descriptor >= 0 { _ = mn_dpdk_interrupt_disable(port, queue) }
    wakeDescriptor = max(-1, descriptor)
  }

  deinit { unsafe burst.deallocate() }

  public mutating func receive(into packets: UnsafeMutablePointer<Packet>, capacity: Int) -> Int {
    let count = unsafe Int(mn_dpdk_receive(port, queue, burst, UInt16(truncatingIfNeeded: min(capacity, packetBurst))))
    var taken = 0
    for index in 0..<count {
      guard let handle = unsafe burst[index] else { continue }
      if unsafe mn_dpdk_segments(handle) != 1 {
        unsafe mn_dpdk_free(burst + index, 1)
        chained += 1
        continue
      }
      unsafe (packets + taken).initialize(to: packet(handle))
      taken += 1
    }
    return taken
  }

  public mutating func transmit(_ packets: UnsafeMutablePointer<Packet>, count: Int) -> Int {
    for index in 0..<count {
      let handle = unsafe packets[index].handle
      unsafe mn_dpdk_set_length(handle, UInt32(bitPattern: packets[index].length))
      unsafe burst[index] = handle
    }
    return unsafe Int(mn_dpdk_transmit(port, queue, burst, UInt16(truncatingIfNeeded: count)))
  }

  public mutating func allocate(into packets: UnsafeMutablePointer<Packet>, count: Int) -> Int {
    if unsafe mn_dpdk_allocate(pool, burst, UInt16(truncatingIfNeeded: count)) != 0 { return 0 }
    var made = 0
    for index in 0..<count {
      guard let handle = unsafe burst[index] else { continue }
      unsafe (packets + made).initialize(to: packet(handle))
      made += 1
    }
    return made
  }

  public mutating func free(_ packets: UnsafeMutablePointer<Packet>, count: Int) {
    for index in 0..<count { unsafe burst[index] = packets[index].handle }
    unsafe mn_dpdk_free(burst, UInt16(truncatingIfNeeded: count))
  }

  @inline(__always)
  private func packet(_ handle: UnsafeMutableRawPointer) -> Packet {
    unsafe Packet(
      unsafe: handle, data: mn_dpdk_data(handle), length: Int(mn_dpdk_length(handle)),
      capacity: Int(mn_dpdk_capacity(handle)))
  }

  public mutating func isLinkUp() -> Bool { mn_dpdk_port_is_up(port) != 0 }

  public mutating func armInterrupt() {
    if wakeDescriptor >= 0 { _ = mn_dpdk_interrupt_enable(port, queue) }
  }

  public mutating func disarmInterrupt() {
    if wakeDescriptor >= 0 { _ = mn_dpdk_interrupt_disable(port, queue) }
  }
}
