import MachnetMemory

/// Finds the endpoint that a datagram is for: chains over two tables of buckets, one keyed by both addresses
/// (connected endpoints), one by the local address (all others). An endpoint is in exactly one chain.
struct Demultiplexer {
  /// The world of the addresses that engines own. There is one wire, whatever namespaces bind to it.
  static var wire: UInt16 { @_noLocks get { 0xFFFF } }
  private static var buckets: Int { 65_536 }

  /// Slot + 1 of a chain's first endpoint; 0: empty.
  private let connected = Table<UInt32>(count: buckets)
  private let bound = Table<UInt32>(count: buckets)
  /// Odd multipliers that nobody knows, so that nobody can choose addresses and ports that meet another's in one chain (multiply-shift:
  /// Dietzfelbinger and others, "A Reliable Randomized Algorithm for the Closest-Pair Problem", J. Algorithms 1997).
  private let multipliers = (UInt64.random(in: 0 ... .max) | 1, UInt64.random(in: 0 ... .max) | 1)
  /// Members of a SO_REUSEPORT group that get datagrams: the latest. Looking at them costs time that is others', too.
  private static var sharingMax: UInt64 { @_noLocks get { 256 } }
  /// Connected endpoints whose local address is the wildcard: they cost every look-up a further look.
  private var connectedWildcards = 0

  func release() {
    connected.release()
    bound.release()
  }

  @inline(__always) @_noLocks
  private func bucket(
    _ world: UInt16, _ address: UInt32, _ port: UInt16, _ peerAddress: UInt32 = 0, _ peerPort: UInt16 = 0
  ) -> UInt32 {
    let local = UInt64(world) << 48 | UInt64(port) << 32 | UInt64(address)
    let peer = UInt64(peerPort) << 32 | UInt64(peerAddress)
    return UInt32(truncatingIfNeeded: (local &* multipliers.0 &+ peer &* multipliers.1) >> 48)
  }

  @_noLocks
  private func bucket(of it: Endpoint) -> UInt32 {
    it.peerPort == 0
      ? bucket(it.world, it.localAddress, it.localPort)
      : bucket(it.world, it.localAddress, it.localPort, it.peerAddress, it.peerPort)
  }

  mutating func insert(_ slot: UInt32, _ endpoints: Table<Endpoint>) {
    let it = endpoints[slot]
    let table = it.peerPort == 0 ? bound : connected
    if it.peerPort != 0 && it.localAddress == 0 { connectedWildcards += 1 }
    let bucket = bucket(of: it)
    let next = table[bucket] &- 1
    endpoints[slot].next = next
    endpoints[slot].previous = none
    if next != none { endpoints[next].previous = slot }
    table[bucket] = slot + 1
  }

  mutating func remove(_ slot: UInt32, _ endpoints: Table<Endpoint>) {
    let it = endpoints[slot]
    let table = it.peerPort == 0 ? bound : connected
    if it.peerPort != 0 && it.localAddress == 0 { connectedWildcards -= 1 }
    if it.next != none { endpoints[it.next].previous = it.previous }
    if it.previous != none {
      endpoints[it.previous].next = it.next
    } else {
      table[bucket(of: it)] = it.next &+ 1
    }
  }

  /// The receiver of a datagram: an endpoint connected to its sender, else one bound to its address, else one bound
  /// to the wildcard in `netns`. Of several with one address, a hash of the flow picks among those that share it
  /// (SO_REUSEPORT); without sharing the latest wins, as in the kernel.
  ///
  /// - Returns: a slot, or `none`.
  @_noLocks
  func receiver(
    world: UInt16, netns: UInt16, address: UInt32, port: UInt16, peerAddress: UInt32, peerPort: UInt16,
    _ endpoints: Table<Endpoint>
  ) -> UInt32 {
    var found = exact(world, address, port, peerAddress, peerPort, endpoints)
    if found != none { return found }
    if connectedWildcards != 0 {
      found = exact(netns, 0, port, peerAddress, peerPort, endpoints)
      if found != none { return found }
    }
    let flow = (UInt64(peerAddress) << 16 | UInt64(peerPort)) &* 0x9E37_79B9_7F4A_7C15 ^ UInt64(address)
    found = member(world, address, port, flow, endpoints)
    if found != none { return found }
    return member(netns, 0, port, flow, endpoints)
  }

  /// The endpoint connected to exactly this peer from exactly this address.
  @_noLocks
  func exact(
    _ world: UInt16, _ address: UInt32, _ port: UInt16, _ peerAddress: UInt32, _ peerPort: UInt16,
    _ endpoints: Table<Endpoint>
  ) -> UInt32 {
    var at = connected[bucket(world, address, port, peerAddress, peerPort)] &- 1
    while at != none {
      if endpoints[at].localPort == port && endpoints[at].peerAddress == peerAddress
        && endpoints[at].peerPort == peerPort && endpoints[at].localAddress == address
        && endpoints[at].world == world
      {
        return at
      }
      at = endpoints[at].next
    }
    return none
  }

  @_noLocks
  private func member(
    _ world: UInt16, _ address: UInt32, _ port: UInt16, _ flow: UInt64, _ endpoints: Table<Endpoint>
  ) -> UInt32 {
    let first = bound[bucket(world, address, port)] &- 1
    var sharing: UInt64 = 0
    var at = first
    while at != none {
      if isBound(endpoints[at], world, address, port) {
        if !endpoints[at].isReusePort { return at }
        sharing += 1
        if sharing == Demultiplexer.sharingMax { break }
      }
      at = endpoints[at].next
    }
    if sharing == 0 { return none }
    var chosen = ((flow >> 32) &* sharing) >> 32
    at = first
    while at != none {
      if isBound(endpoints[at], world, address, port) {
        if chosen == 0 { return at }
        chosen -= 1
      }
      at = endpoints[at].next
    }
    return none
  }

  @inline(__always) @_noLocks
  private func isBound(_ it: Endpoint, _ world: UInt16, _ address: UInt32, _ port: UInt16) -> Bool {
    it.localPort == port && it.localAddress == address && it.world == world
  }
}
