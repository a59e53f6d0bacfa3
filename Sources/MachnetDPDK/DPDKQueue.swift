import CDPDK
public import MachnetEngine

/// One queue pair of a port. Used by one thread, which has called `EAL.adoptThread`.
@safe
public struct DPDKQueue: PacketIO, ~Copyable {
  /// Keeps pool and counters alive.
  private let owner: Port
  private let port: UInt16
  private let queue: UInt16
  /// Safety: the port's.
  private let pool: UnsafeMutableRawPointer
  private let discarded: UnsafeMutablePointer<UInt64>
  /// Safety: room for `packetBurst` packets; owned by the queue.
  private let handles: UnsafeMutablePointer<UnsafeMutableRawPointer?>
  private let interrupt: Port.Interrupt

  /// Shortest frame on the wire without its check sequence. Not every vNIC pads by itself.
  private static var frameMinimum: Int32 { @_noLocks get { 60 } }

  /// - Parameter queue: 0..<`port.queues`, each for one `DPDKQueue` at a time.
  public init(_ port: Port, queue: Int) {
    precondition(queue >= 0 && queue < port.queues)
    owner = port
    self.port = port.number
    self.queue = UInt16(queue)
    unsafe pool = port.pool
    unsafe discarded = port.discarded + queue
    unsafe handles = .allocate(capacity: packetBurst)
    unsafe handles.initialize(repeating: nil, count: packetBurst)
    interrupt = port.interrupt(queue)
  }

  deinit { unsafe handles.deallocate() }

  @_noLocks
  public mutating func receive(into burst: UnsafeMutablePointer<Packet>, capacity: Int) -> Int {
    let limit = min(capacity, packetBurst)
    let count = Int(unsafe mn_dpdk_receive(port, queue, handles, UInt16(truncatingIfNeeded: limit)))
    var taken = 0
    var index = 0
    while index < count {
      if index &+ 1 < count { unsafe mn_dpdk_prefetch(mn_dpdk_data(handles[index &+ 1])) }
      let handle = unsafe handles[index]!
      if unsafe !mn_dpdk_is_segmented(handle) || mn_dpdk_linearise(handle) == 0 {
        unsafe (burst + taken).initialize(to: packet(handle))
        taken = taken &+ 1
      } else {
        unsafe mn_dpdk_free(handles + index, 1)
        unsafe mn_dpdk_count(discarded, 1)
      }
      index = index &+ 1
    }
    return taken
  }

  /// Frames below 60 bytes are padded with zeros where the buffer has room.
  @_noLocks
  public mutating func transmit(_ burst: UnsafeMutablePointer<Packet>, count: Int) -> Int {
    precondition(count >= 0 && count <= packetBurst)
    var index = 0
    while index < count {
      let packet = unsafe burst[index]
      var length = packet.length
      if length < Self.frameMinimum && packet.capacity >= Self.frameMinimum {
        precondition(length >= 0)
        unsafe (packet.data + Int(length)).initializeMemory(
          as: UInt8.self, repeating: 0, count: Int(Self.frameMinimum &- length))
        length = Self.frameMinimum
      }
      let fits = unsafe mn_dpdk_set_frame(packet.handle, packet.data, UInt32(bitPattern: length))
      precondition(fits, "a frame outside of its buffer")
      unsafe handles[index] = packet.handle
      index = index &+ 1
    }
    return Int(unsafe mn_dpdk_transmit(port, queue, handles, UInt16(truncatingIfNeeded: count)))
  }

  @_noLocks
  public mutating func allocate(into burst: UnsafeMutablePointer<Packet>, count: Int) -> Int {
    let wanted = min(max(0, count), packetBurst)
    var taken = 0
    var bulk = wanted
    while taken < wanted && bulk > 0 {
      if unsafe mn_dpdk_allocate(pool, handles + taken, UInt16(truncatingIfNeeded: bulk)) == 0 {
        taken = taken &+ bulk
        bulk = min(bulk, wanted &- taken)
      } else {
        // All or nothing: the rest of a pool that runs dry comes in smaller bulks.
        bulk /= 2
      }
    }
    var index = 0
    while index < taken {
      unsafe (burst + index).initialize(to: packet(handles[index]!))
      index = index &+ 1
    }
    return taken
  }

  @_noLocks
  public mutating func free(_ burst: UnsafeMutablePointer<Packet>, count: Int) {
    var done = 0
    while done < count {
      let next = min(count &- done, packetBurst)
      var index = 0
      while index < next {
        unsafe handles[index] = burst[done &+ index].handle
        index = index &+ 1
      }
      unsafe mn_dpdk_free(handles, UInt16(truncatingIfNeeded: next))
      done = done &+ next
    }
  }

  @_noLocks
  public mutating func isLinkUp() -> Bool { mn_dpdk_link_is_up(port) }

  public var wakeDescriptor: Int32 {
    switch interrupt {
    case .driver(let descriptor), .socket(let descriptor): descriptor
    case .none: -1
    }
  }

  @_noLocks
  public mutating func armInterrupt() {
    if case .driver = interrupt { _ = mn_dpdk_arm(port, queue) }
  }

  @_noLocks
  public mutating func disarmInterrupt() {
    if case .driver = interrupt { _ = mn_dpdk_disarm(port, queue) }
  }

  @_noLocks
  private func packet(_ handle: UnsafeMutableRawPointer) -> Packet {
    unsafe Packet(
      unsafe: handle, data: mn_dpdk_data(handle), length: Int(mn_dpdk_length(handle)),
      capacity: Int(mn_dpdk_capacity(handle)))
  }
}
