import CMachnetABI
import EngineBench
import MachnetChannel
import MachnetEngine

/// One direction of a wire in memory, and what a port on it has allocated.
final class Cable {
  var frames: [[UInt8]] = []
  /// Frames that it takes before it is full.
  var capacity = Int.max
  /// Every frame that ever entered it.
  var seen: [[UInt8]] = []
}

final class Pool {
  var outstanding = 0
  var limit = Int.max
}

/// A port on two cables.
struct MemoryPort: PacketIO, ~Copyable {
  let inbound: Cable
  let outbound: Cable
  let pool: Pool
  static let capacity = 2048

  func make(_ length: Int) -> Packet {
    pool.outstanding += 1
    let memory = UnsafeMutableRawPointer.allocate(byteCount: MemoryPort.capacity, alignment: 64)
    return unsafe Packet(unsafe: memory, data: memory, length: length, capacity: MemoryPort.capacity)
  }

  mutating func receive(into burst: UnsafeMutablePointer<Packet>, capacity: Int) -> Int {
    var count = 0
    while count < capacity, let frame = inbound.frames.first {
      let packet = make(frame.count)
      inbound.frames.removeFirst()
      unsafe frame.withUnsafeBytes { if $0.count > 0 { unsafe packet.data.copyMemory(from: $0.baseAddress!, byteCount: $0.count) } }
      unsafe (burst + count).initialize(to: packet)
      count += 1
    }
    return count
  }

  mutating func transmit(_ burst: UnsafeMutablePointer<Packet>, count: Int) -> Int {
    var taken = 0
    while taken < count && outbound.frames.count < outbound.capacity {
      let packet = unsafe burst[taken]
      let frame = unsafe [UInt8](UnsafeRawBufferPointer(start: packet.data, count: Int(packet.length)))
      outbound.frames.append(frame)
      outbound.seen.append(frame)
      taken += 1
    }
    unsafe free(burst, count: taken)
    return taken
  }

  mutating func allocate(into burst: UnsafeMutablePointer<Packet>, count: Int) -> Int {
    for index in 0..<count {
      if pool.outstanding >= pool.limit { return index }
      unsafe (burst + index).initialize(to: make(0))
    }
    return count
  }

  mutating func free(_ burst: UnsafeMutablePointer<Packet>, count: Int) {
    for index in 0..<count {
      unsafe burst[index].handle.deallocate()
      pool.outstanding -= 1
    }
  }

  func isLinkUp() -> Bool { true }
  var wakeDescriptor: Int32 { -1 }
  func armInterrupt() {}
  func disarmInterrupt() {}
}

/// A daemon with one port, stepped by the test.
final class Host {
  let directory: TestDirectory
  let control: EngineControl
  let channel: TestChannel
  let pool = Pool()
  let inbound: Cable
  let outbound: Cable
  private var engine: Engine<MemoryPort>

  init(_ interface: InterfaceOptions, inbound: Cable, outbound: Cable) {
    directory = TestDirectory(interfaces: [interface])
    let options = EngineOptions(index: 0, directory: directory.directory, interfaces: [interface])
    control = EngineControl(options: options)!
    channel = TestChannel(identifier: 1, endpoints: 8)
    self.inbound = inbound
    self.outbound = outbound
    engine = Engine<MemoryPort>(control: control)
    engine.add(port: MemoryPort(inbound: inbound, outbound: outbound, pool: pool))
    _ = try! unsafe control.addChannel(identifier: 1, base: channel.base, size: channel.size, doorbell: channel.doorbell)
  }

  func step() -> Bool { engine.iterate() }

  /// Steps until there is nothing to do.
  func settle() {
    var rounds = 0
    while engine.iterate() && rounds < 10_000 { rounds += 1 }
  }

  /// Ends the engine; whether every packet came back.
  func end() -> Bool {
    control.stop()
    engine.run()
    return pool.outstanding == 0
  }

  func open(_ index: UInt32, _ address: UInt32, _ port: UInt16, peer: (UInt32, UInt16)? = nil) -> Application {
    let application = Application(channel, index, directory.directory)
    _ = try! control.openEndpoint(application.reference, EndpointIdentity(address, port, application, peer: peer))
    return application
  }
}

let macA: UInt64 = 0x0200_0000_000A
let macB: UInt64 = 0x0200_0000_000B
let addressA = ip(10, 0, 0, 1)
let addressB = ip(10, 0, 0, 2)

func interface(
  _ address: UInt32, _ mac: UInt64, mtu: Int = 1500, gateway: UInt32 = 0, mask: UInt32 = 0xFFFF_FF00
) -> InterfaceOptions {
  InterfaceOptions(name: "net0", address: address, mask: mask, gateway: gateway, mtu: mtu, mac: mac)
}

/// Two hosts on one wire.
final class Pair {
  let there = Cable()
  let back = Cable()
  let a: Host
  let b: Host

  init(mtu: Int = 1500) {
    a = Host(interface(addressA, macA, mtu: mtu), inbound: back, outbound: there)
    b = Host(interface(addressB, macB, mtu: mtu), inbound: there, outbound: back)
  }

  func settle() {
    for _ in 0..<10_000 where a.step() || b.step() || !there.frames.isEmpty || !back.frames.isEmpty {}
  }
}
