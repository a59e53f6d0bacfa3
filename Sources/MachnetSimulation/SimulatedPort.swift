public import MachnetEngine

/// One queue pair of a simulated NIC, for an engine. Used on the network's thread.
public struct SimulatedPort: PacketIO, ~Copyable {
  private let network: SimulatedNetwork
  private let host: Int
  private let queue: Int

  public init(_ network: SimulatedNetwork, host: Int, queue: Int) {
    precondition(queue >= 0 && queue < network.options(of: host).queues)
    self.network = network
    self.host = host
    self.queue = queue
  }

  public mutating func receive(into burst: UnsafeMutablePointer<Packet>, capacity: Int) -> Int {
    var count = 0
    while count < capacity, let packet = network.receivePacket(host: host, queue: queue) {
      unsafe (burst + count).initialize(to: packet)
      count += 1
    }
    return count
  }

  public mutating func transmit(_ burst: UnsafeMutablePointer<Packet>, count: Int) -> Int {
    var taken = 0
    while taken < count, unsafe network.transmit(burst[taken], from: host, queue: queue) { taken += 1 }
    return taken
  }

  public mutating func allocate(into burst: UnsafeMutablePointer<Packet>, count: Int) -> Int {
    var taken = 0
    while taken < count, let packet = network.allocate(for: host) {
      unsafe (burst + taken).initialize(to: packet)
      taken += 1
    }
    return taken
  }

  public mutating func free(_ burst: UnsafeMutablePointer<Packet>, count: Int) {
    for index in 0..<count { unsafe network.free(burst[index], of: host) }
  }

  public mutating func isLinkUp() -> Bool { network.isLinkUp(of: host) }
  public var wakeDescriptor: Int32 { -1 }
  public mutating func armInterrupt() {}
  public mutating func disarmInterrupt() {}
}
