import MachnetEngine
import MachnetTransport

/// Two engines and nothing between them but a ring of packets each way: what a message costs them, counted from outside
/// (`Scripts/engine-cost`). Rounds are of virtual time, so a run is the same every time, to the instruction.
@safe
package final class EngineCost {
  /// Safety: what the engines' clocks read; owned.
  private let time: UnsafeMutablePointer<UInt64>
  private let pool = PipePool(4096)
  private let there = Pipe(1024)
  private let back = Pipe(1024)
  private let hosts: [CostHost]
  private let sender: Application
  private let receiver: Application
  private let payload: [UInt8]
  private let isMachnet: Bool
  package private(set) var delivered = 0
  /// ns of a round.
  private let roundTime: UInt64 = 5_000

  package init(size: Int, machnet: Bool) {
    unsafe time = .allocate(capacity: 1)
    unsafe time.initialize(to: 1_000_000_000)
    payload = [UInt8](repeating: 7, count: size)
    isMachnet = machnet
    hosts = unsafe [CostHost(1, time, pool, back, there), CostHost(2, time, pool, there, back)]
    sender = hosts[0].open(1000)
    receiver = hosts[1].open(2000)
    // Neighbours and a session are there before anything is counted.
    for _ in 0..<100 where delivered == 0 {
      if delivered == 0 { run(rounds: 20, burst: 1) }
    }
    run(rounds: 2000, burst: 0)
    delivered = 0
  }

  deinit { unsafe time.deallocate() }

  /// `burst` messages are put into the sender's ring before each round, in which either engine works once.
  package func run(rounds: Int, burst: Int) {
    for _ in 0..<rounds {
      for _ in 0..<burst {
        precondition(sender.send(payload, to: hosts[1].address, 2000, machnet: isMachnet), "the engine does not keep up")
      }
      for host in hosts {
        unsafe time.pointee += roundTime / 2
        host.step()
      }
      while receiver.receive() != nil { delivered += 1 }
    }
  }
}

/// A daemon of one engine.
@safe
private final class CostHost {
  let address: UInt32
  private let directory: TestDirectory
  private let control: EngineControl
  private let channel = TestChannel(identifier: 1)
  private var engine: Engine<PipePort>

  init(_ number: UInt32, _ time: UnsafePointer<UInt64>, _ pool: PipePool, _ inbound: Pipe, _ outbound: Pipe) {
    address = ip(10, 0, 0, number)
    let interface = InterfaceOptions(
      name: "net0", address: address, mask: 0xFFFF_FF00, mtu: 1500, mac: 0x0200_0000_0000 | UInt64(number))
    directory = TestDirectory(interfaces: [interface])
    var options = EngineOptions(index: 0, directory: directory.directory, interfaces: [interface])
    unsafe options.virtualTime = time
    options.transport = TransportOptions(engine: 0, engines: 1, epoch: UInt64(number), seed: (UInt64(number), 1))
    control = EngineControl(options: options)!
    engine = Engine<PipePort>(control: control)
    engine.add(port: PipePort(inbound: inbound, outbound: outbound, pool: pool))
    _ = try! unsafe control.addChannel(identifier: 1, base: channel.base, size: channel.size, doorbell: channel.doorbell)
  }

  /// What is counted: callgrind collects inside of this.
  @inline(never)
  func step() { _ = engine.iterate() }

  func open(_ port: UInt16) -> Application {
    let application = Application(channel, 0, directory.directory)
    _ = try! control.openEndpoint(application.reference, EndpointIdentity(0, port, application))
    return application
  }
}

/// Buffers of 2 kB, given out last in, first out.
@safe
private final class PipePool {
  static let size = 2048
  /// Safety: `count` of them are free; all live until the end.
  private let free: UnsafeMutablePointer<UnsafeMutableRawPointer>
  private let memory: UnsafeMutableRawPointer
  private(set) var count: Int

  init(_ buffers: Int) {
    unsafe memory = .allocate(byteCount: buffers * PipePool.size, alignment: 64)
    unsafe free = .allocate(capacity: buffers)
    for index in 0..<buffers { unsafe (free + index).initialize(to: memory + index * PipePool.size) }
    count = buffers
  }

  deinit {
    unsafe free.deallocate()
    unsafe memory.deallocate()
  }

  func take() -> Packet? {
    if count == 0 { return nil }
    count -= 1
    return unsafe Packet(unsafe: free[count], data: free[count], length: 0, capacity: PipePool.size)
  }

  func give(_ packet: Packet) {
    unsafe free[count] = packet.handle
    count += 1
  }
}

/// Packets on their way in one direction.
@safe
private final class Pipe {
  /// Safety: a ring of `capacity`.
  private let ring: UnsafeMutablePointer<Packet?>
  private let capacity: Int
  private var head = 0
  private var tail = 0

  init(_ capacity: Int) {
    self.capacity = capacity
    unsafe ring = .allocate(capacity: capacity)
    unsafe ring.initialize(repeating: nil, count: capacity)
  }

  deinit { unsafe ring.deallocate() }

  func put(_ packet: Packet) -> Bool {
    if tail - head == capacity { return false }
    unsafe ring[tail % capacity] = packet
    tail += 1
    return true
  }

  func take() -> Packet? {
    if head == tail { return nil }
    head += 1
    return unsafe ring[(head - 1) % capacity]
  }
}

/// Hands packets over without a copy.
private struct PipePort: PacketIO, ~Copyable {
  let inbound: Pipe
  let outbound: Pipe
  let pool: PipePool

  mutating func receive(into burst: UnsafeMutablePointer<Packet>, capacity: Int) -> Int {
    var count = 0
    while count < capacity, let packet = inbound.take() {
      unsafe (burst + count).initialize(to: packet)
      count += 1
    }
    return count
  }

  mutating func transmit(_ burst: UnsafeMutablePointer<Packet>, count: Int) -> Int {
    var taken = 0
    while taken < count, unsafe outbound.put(burst[taken]) { taken += 1 }
    return taken
  }

  mutating func allocate(into burst: UnsafeMutablePointer<Packet>, count: Int) -> Int {
    var taken = 0
    while taken < count, let packet = pool.take() {
      unsafe (burst + taken).initialize(to: packet)
      taken += 1
    }
    return taken
  }

  mutating func free(_ burst: UnsafeMutablePointer<Packet>, count: Int) {
    for index in 0..<count { unsafe pool.give(burst[index]) }
  }

  func isLinkUp() -> Bool { true }
  var wakeDescriptor: Int32 { -1 }
  func armInterrupt() {}
  func disarmInterrupt() {}
}
