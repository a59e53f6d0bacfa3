import CLinux
import CMachnetABI
import MachnetChannel
import MachnetEngine

/// The control thread's books on one channel. The application can write every word of the memory, so nothing that
/// matters is ever read back from it.
final class Channel {
  let identifier: UInt32
  let token: UInt64
  /// The connections with whose end it ends: that of its process, and of those that have joined endpoints in it.
  var holders: Set<UInt64>
  let uid: UInt32
  /// Where its processes' thread ids mean something (pid_namespaces(7)); nil: not known.
  let processNamespace: UInt64?
  let memory: SharedMemory
  /// One per engine, for an application to ring.
  let doorbells: [Descriptor]
  /// By block number; nil: free.
  var endpoints: [Endpoint?]
  private let shape: Shape

  struct Shape {
    let endpoints, engines, transmitRing, receiveRing: UInt32

    init(_ config: Config) {
      endpoints = UInt32(config.channel.endpoints)
      engines = UInt32(config.engine.count)
      transmitRing = UInt32(config.channel.transmitRing)
      receiveRing = UInt32(config.channel.receiveRing)
    }

    var size: UInt64 { mn_channel_size(endpoints, engines, transmitRing, receiveRing) }

    func rings(of index: UInt32) -> Range<UInt64> {
      let first = mn_rings_offset(index, endpoints, engines, transmitRing, receiveRing)
      return first..<mn_rings_offset(index + 1, endpoints, engines, transmitRing, receiveRing)
    }

    /// Where the rings of a block begin, relative to the first: its TX ring, then one RX ring per engine.
    var ringOffsets: [UInt64] {
      [0] + (0..<UInt64(engines)).map { mn_ring_stride(UInt64(transmitRing)) + $0 * mn_ring_stride(UInt64(receiveRing)) }
    }
  }

  /// - Parameter mayUseHugePages: a process that can write a channel can also punch holes into it, and touching a hole
  ///   when the pool of huge pages is empty kills the toucher, an engine. So only for those who may kill it anyway.
  init(identifier: UInt32, owner: UInt64, uid: UInt32, processNamespace: UInt64?, shape: Shape, mayUseHugePages: Bool) throws(SystemError) {
    self.identifier = identifier
    holders = [owner]
    self.uid = uid
    self.processNamespace = processNamespace
    self.shape = shape
    token = try randomWord()
    memory =
      mayUseHugePages
      ? try .preferringHugePages(name: "machnet-channel", size: Int(shape.size), sealing: .size)
      : try SharedMemory(name: "machnet-channel", size: Int(shape.size), sealing: .size)
    var doorbells: [Descriptor] = []
    for _ in 0..<shape.engines { doorbells.append(try Descriptor(mn_linux_eventfd(), "make a doorbell")) }
    self.doorbells = doorbells
    endpoints = Array(repeating: nil, count: Int(shape.endpoints))
    let header = unsafe memory.base.assumingMemoryBound(to: mn_channel.self)
    unsafe header.pointee.version = MN_ABI_VERSION
    unsafe header.pointee.size = UInt64(memory.size)
    unsafe header.pointee.identifier = identifier
    unsafe header.pointee.endpoint_capacity = shape.endpoints
    unsafe header.pointee.engine_count = shape.engines
    unsafe header.pointee.tx_capacity = shape.transmitRing
    unsafe header.pointee.rx_capacity = shape.receiveRing
    unsafe header.pointee.token = token
    unsafe header.pointee.magic = MN_MAGIC
  }

  private func block(_ index: UInt32) -> UnsafeMutableRawPointer {
    precondition(index < shape.endpoints)
    return unsafe memory.base + Int(mn_endpoint_offset(index))
  }

  /// Makes a block and its rings as new. No engine knows the endpoint now.
  func prepare(_ index: UInt32, generation: UInt32, homeEngine: UInt32) {
    let block = unsafe block(index)
    unsafe block.initializeMemory(as: UInt8.self, repeating: 0, count: MemoryLayout<mn_endpoint>.size)
    let endpoint = unsafe block.assumingMemoryBound(to: mn_endpoint.self)
    unsafe endpoint.pointee.generation = generation
    unsafe endpoint.pointee.home_engine = homeEngine
    let rings = shape.rings(of: index)
    for offset in shape.ringOffsets {
      unsafe (memory.base + Int(rings.lowerBound + offset)).initializeMemory(
        as: UInt8.self, repeating: 0, count: MemoryLayout<mn_ring>.size)
    }
    // A bit that was left set would only cost the engine a look, but the look would be at somebody else's ring.
    for engine in 0..<shape.engines {
      let word = unsafe memory.base + Int(MN_CHANNEL_READY) + Int(engine) * MemoryLayout<mn_ready>.size + Int(index / 64) * 8
      _ = unsafe mn_fetch_and_u64(word, ~(1 << UInt64(index % 64)))
    }
  }

  /// Processes that hold an endpoint, as the application's side counts them: information, like all that it can write.
  func references(_ index: UInt32) -> UInt32 { unsafe mn_load_relaxed_u32(block(index) + Int(MN_OFFSET_ENDPOINT_REFERENCES)) }

  func addReference(_ index: UInt32, _ count: Int) {
    _ = unsafe mn_fetch_add_u32(block(index) + Int(MN_OFFSET_ENDPOINT_REFERENCES), UInt32(truncatingIfNeeded: count))
  }

  /// What the RX rings hold is older than whatever the shadow holds or gets, until engines fill them again.
  func markReceived(_ index: UInt32) {
    for unsafe ring in unsafe receiveRings(of: index) {
      unsafe mn_store_relaxed_u64(ring + Int(MN_OFFSET_RING_MARK), mn_load_relaxed_u64(ring))
    }
  }

  /// MN_ENDPOINT_*
  enum State: UInt32 { case free, live, closed, left, leaving, withdrawn }

  /// Release: pairs with an application's acquire before it looks at the rings.
  func setState(_ index: UInt32, _ state: State) {
    unsafe mn_store_release_u32(block(index) + Int(MN_OFFSET_ENDPOINT_STATE), state.rawValue)
  }

  /// Gives the pages of a closed block's rings back, where enough of them were touched to be worth the call.
  func reclaim(_ index: UInt32) {
    let rings = shape.rings(of: index)
    let touched = shape.ringOffsets.contains { offset in
      // The application may have lied about its tail; then a call too many or too few is made.
      unsafe mn_load_relaxed_u64(memory.base + Int(rings.lowerBound + offset)) > 64 << 10
    }
    if touched { memory.punchHole(offset: rings.lowerBound, length: rings.upperBound - rings.lowerBound) }
  }

  private func receiveRings(of index: UInt32) -> [UnsafeMutableRawPointer] {
    let rings = shape.rings(of: index)
    return unsafe shape.ringOffsets.dropFirst().map { unsafe memory.base + Int(rings.lowerBound + $0) }
  }

  /// The RX rings of a block that no engine touches.
  func receiveReaders(of index: UInt32) -> [RingReader] {
    unsafe receiveRings(of: index).map { unsafe RingReader(unsafe: $0, capacity: shape.receiveRing) }
  }

  func receiveWriters(of index: UInt32) -> [RingWriter] {
    unsafe receiveRings(of: index).map { unsafe RingWriter(unsafe: $0, capacity: shape.receiveRing) }
  }

  /// Bytes.
  var receiveCapacity: UInt32 { shape.receiveRing }

  /// What the application says about itself: never more than information.
  func stated(_ index: UInt32) -> mn_endpoint {
    unsafe block(index).assumingMemoryBound(to: mn_endpoint.self).pointee
  }
}

/// The control thread's books on one endpoint.
final class Endpoint {
  let reference: EndpointReference
  let cookie: UInt64
  let netnsCookie: UInt64
  var netns: UInt16
  let port: UInt16
  let homeEngine: UInt32
  let event: Descriptor
  let reusesPort: Bool
  let reusesAddress: Bool
  let program: String
  let pid: Int32
  /// Whose it is: its channel's.
  let uid: UInt32
  /// The connection that it was opened on.
  let opener: UInt64
  /// As /proc/PID/fd names the shadow.
  let inode: UInt64
  let opened = mn_linux_monotonic()
  /// Its application reads on what its rings hold (MN_CLOSE_KEEPING), and closes it again.
  var isKept = false
  /// The connection that has said so; and whether before an exec, so that whoever opens the socket next gets what is unread.
  var keeper: UInt64 = 0
  var isLeaving = false
  /// How many descriptors of its socket went to other processes since, and the connections that have shown theirs.
  var passes = 0
  var receivers: Set<UInt64> = []
  /// It has gone back to the kernel, for all who have the socket, because one of them may not see its rings.
  var isWithdrawn = false
  /// Looks in a row that did not find its socket (`closeOrphans`).
  var misses = 0
  /// And all engines have let go of it.
  var isLeft = false
  /// Host byte order; 0: the wildcard.
  var address: UInt32
  var peer: Peer?

  init(
    reference: EndpointReference, shadow: ShadowSocket, netns: UInt16, address: UInt32, peer: Peer?, homeEngine: UInt32,
    event: Descriptor, program: String, pid: Int32, uid: UInt32, opener: UInt64
  ) {
    self.reference = reference
    cookie = shadow.cookie
    netnsCookie = shadow.netnsCookie
    self.netns = netns
    self.address = address
    port = shadow.localPort
    self.peer = peer
    self.homeEngine = homeEngine
    self.event = event
    inode = shadow.inode
    reusesPort = shadow.reusesPort
    reusesAddress = shadow.reusesAddress
    self.program = program
    self.pid = pid
    self.uid = uid
    self.opener = opener
  }

  var key: UInt64 { mn_local_key(netns, address, port) }

  var identity: EndpointIdentity {
    var identity = EndpointIdentity(localPort: port, eventDescriptor: event.number)
    identity.netns = netns
    identity.localAddress = address
    identity.peerAddress = peer?.address ?? 0
    identity.peerPort = peer?.port ?? 0
    identity.homeEngine = homeEngine
    identity.reusePort = reusesPort
    return identity
  }
}
