import CMachnetABI
import EngineBench
import MachnetChannel
import MachnetMemory
import MachnetWire
import Testing

@testable import MachnetEngine

/// A capture's memory, read as a client reads it.
private final class Memory {
  static let size = Int(MN_PAGE + MN_CAPTURE_DATA)
  let base = UnsafeMutableRawPointer.allocate(byteCount: Memory.size, alignment: 4096)
  var head: UInt64 = 0

  init() { unsafe base.initializeMemory(as: UInt8.self, repeating: 0, count: Memory.size) }
  deinit { base.deallocate() }

  struct Frame: Equatable {
    var bytes: [UInt8]
    var original: Int
    var interface: Int
    var direction: Int
  }

  func take() -> [Frame] {
    var frames: [Frame] = []
    let tail = unsafe mn_load_acquire_u64(base + 64)
    let capacity = UInt64(MN_CAPTURE_DATA)
    while head != tail {
      let record = unsafe base + Int(MN_PAGE) + Int(head % capacity)
      let length = unsafe Int(record.load(as: UInt32.self))
      let bytes = (0..<length).map { index in
        unsafe base.load(fromByteOffset: Int(MN_PAGE) + Int((head + 32 + UInt64(index)) % capacity), as: UInt8.self)
      }
      frames.append(
        unsafe Frame(
          bytes: bytes, original: Int(record.load(fromByteOffset: 4, as: UInt32.self)),
          interface: Int(record.load(fromByteOffset: 16, as: UInt16.self)),
          direction: Int(record.load(fromByteOffset: 18, as: UInt16.self))))
      head += UInt64((32 + length + 31) & ~31)
    }
    unsafe mn_store_release_u64(base + 128, head)
    return frames
  }

  func seen(_ interface: Int) -> UInt64 { unsafe mn_load_relaxed_u64(base + 192 + interface * 8) }
  func dropped(_ interface: Int) -> UInt64 { unsafe mn_load_relaxed_u64(base + 192 + (17 + interface) * 8) }
}

@Suite struct Captures {
  private func start(_ host: Host, address: UInt32 = 0, port: UInt16 = 0, snap: Int = 65535) throws -> Memory {
    // The first thing that an engine does is to say over ARP where it is.
    host.settle()
    let memory = Memory()
    let ticket = unsafe try host.control.capture(into: memory.base, address: address, port: port, snap: snap)
    host.settle()
    #expect(host.control.isDone(ticket))
    return memory
  }

  @Test func `what crosses the wire is captured, both ways, whole and once`() throws {
    let pair = Pair()
    let alice = pair.a.open(0, 0, 1000)
    let bob = pair.b.open(0, addressB, 2000)
    let memory = try start(pair.a)
    pair.there.seen = []
    for length in [0, 1, 100, 1472, 4000] {
      #expect(alice.send([UInt8](repeating: 7, count: length), to: addressB, 2000))
      pair.settle()
      #expect(bob.send([UInt8](repeating: 8, count: length), to: addressA, 1000))
      pair.settle()
    }
    let frames = memory.take()
    #expect(frames.filter { $0.direction == MN_CAPTURE_OUT }.map(\.bytes) == pair.there.seen)
    #expect(frames.filter { $0.direction == MN_CAPTURE_IN }.map(\.bytes) == pair.back.seen)
    #expect(frames.allSatisfy { $0.interface == 0 && $0.original == $0.bytes.count })
    #expect(memory.seen(0) == UInt64(frames.count) && memory.dropped(0) == 0)
    // After its end nothing is written.
    _ = unsafe try pair.a.control.capture(into: nil)
    #expect(alice.send([1], to: addressB, 2000))
    pair.settle()
    #expect(memory.take().isEmpty)
    #expect(pair.a.end() && pair.b.end())
  }

  @Test func `a frame that the port did not take is captured once`() throws {
    let pair = Pair()
    let alice = pair.a.open(0, 0, 1000)
    #expect(alice.send([0], to: addressB, 2000))
    pair.settle()
    let memory = try start(pair.a)
    pair.there.capacity = 0
    for index in 1...3 { #expect(alice.send([UInt8(index)], to: addressB, 2000)) }
    for _ in 0..<10 { _ = pair.a.step() }
    pair.there.capacity = Int.max
    pair.settle()
    #expect(memory.take().filter { $0.direction == MN_CAPTURE_OUT }.map { $0.bytes.last } == [1, 2, 3])
  }

  @Test func `a local delivery looks as it would on a wire`() throws {
    let pair = Pair()
    let alice = pair.a.open(0, 0x7f00_0001, 1000)
    let bob = pair.a.open(1, 0x7f00_0001, 2000)
    #expect(alice.send([9], to: 0x7f00_0001, 2000))
    pair.a.settle()
    // The route is remembered by now; the capture is told all the same.
    let memory = try start(pair.a)
    let payload = (0..<3000).map { UInt8(truncatingIfNeeded: $0) }
    #expect(alice.send(payload, to: 0x7f00_0001, 2000, ttl: 9, tos: 4))
    pair.a.settle()
    let frame = try #require(memory.take().first)
    #expect(frame.interface == MN_CAPTURE_LOCAL && frame.original == 3042 && memory.seen(Int(MN_CAPTURE_LOCAL)) == 1)
    var bytes = frame.bytes
    let (source, destination, right, ttl, ports, data) = unsafe bytes.withUnsafeMutableBytes { raw in
      let ip = unsafe IPv4Packet(Bytes(unsafe: raw.baseAddress!, count: raw.count).slice(14))!
      let udp = UDPDatagram(ip.payload)!
      let data = unsafe [UInt8](UnsafeRawBufferPointer(start: udp.payload.base, count: udp.payload.count))
      return (ip.source, ip.destination, ip.isChecksumRight, ip.ttl, [udp.sourcePort, udp.destinationPort], data)
    }
    #expect(source == 0x7f00_0001 && destination == 0x7f00_0001 && right && ttl == 9 && ports == [1000, 2000] && data == payload)
    #expect(bob.receive()?.payload == [9])
    #expect(bob.receive()?.payload == payload)
  }

  private static let filters: [(UInt32, UInt16, [Bool])] = [
    (addressA, 0, [true, true, true]), (ip(10, 0, 0, 9), 0, [false, false, false]), (0, 2000, [false, true, true]),
    (0, 1000, [false, true, false]), (0, 9, [false, false, true]), (addressB, 2000, [false, true, false]), (addressB, 9, [false, false, false]),
  ]

  @Test(arguments: filters)
  func `the filter goes by address and port`(_ address: UInt32, _ port: UInt16, _ wanted: [Bool]) throws {
    let pair = Pair()
    let memory = try start(pair.b, address: address, port: port)
    var arp = [UInt8](repeating: 0, count: 42)
    unsafe arp.withUnsafeMutableBytes { raw in
      let bytes = unsafe Bytes(unsafe: raw.baseAddress!, count: raw.count)
      EthernetFrame.emit(into: bytes, destination: ethernetBroadcast, source: macA, type: EtherType.arp)
      ARPPacket.emit(
        into: bytes.slice(14), operation: ARPPacket.request, senderHardware: macA, senderProtocol: addressA, targetHardware: 0,
        targetProtocol: ip(10, 0, 0, 77))
    }
    let frames = [
      arp, udpFrame(payload: [1]), udpFrame(source: addressA, destination: ip(10, 0, 0, 5), sourcePort: 9, payload: [2]),
    ]
    pair.there.frames += frames
    // Frames that are none, too.
    pair.there.frames += [[], [1], Array(frames[1].prefix(20)), Array(frames[1].prefix(34)), Array(frames[1].prefix(36))]
    pair.b.settle()
    let got = memory.take().filter { $0.direction == MN_CAPTURE_IN && $0.bytes.count >= 42 }.map(\.bytes)
    #expect(got == zip(frames, wanted).filter(\.1).map(\.0))
  }

  @Test func `what is beyond the snap length is counted only`() throws {
    let pair = Pair()
    let alice = pair.a.open(0, 0x7f00_0001, 1000)
    _ = pair.a.open(1, 0x7f00_0001, 2000)
    for snap in [64, 65, 42, 14] {
      let memory = try start(pair.a, snap: snap)
      #expect(alice.send([UInt8](repeating: 1, count: 500), to: 0x7f00_0001, 2000))
      pair.a.settle()
      let frame = try #require(memory.take().first)
      #expect(frame.bytes.count == snap && frame.original == 542)
    }
  }

  @Test func `a reader that is slow loses frames and nothing else, one that lies too`() throws {
    let pair = Pair()
    let alice = pair.a.open(0, 0x7f00_0001, 1000)
    let bob = pair.a.open(1, 0x7f00_0001, 2000)
    let memory = try start(pair.a)
    let local = Int(MN_CAPTURE_LOCAL)
    func send(_ count: Int) {
      for index in 0..<count {
        #expect(alice.send([UInt8](repeating: UInt8(truncatingIfNeeded: index), count: 60_000), to: 0x7f00_0001, 2000))
        pair.a.settle()
        #expect(bob.receive()?.payload.count == 60_000)
      }
    }
    send(100)
    let fits = Int(MN_CAPTURE_DATA) / ((32 + 60_042 + 31) & ~31)
    #expect(memory.seen(local) == 100 && memory.dropped(local) == UInt64(100 - fits))
    #expect(memory.take().count == fits)
    // The ring goes round, and every byte is still right.
    for _ in 0..<5 {
      send(50)
      let frames = memory.take()
      #expect(frames.count == 50 && frames.enumerated().allSatisfy { index, frame in frame.bytes[42...].allSatisfy { $0 == UInt8(index) } })
    }
    let lost = memory.dropped(local)
    for lie: UInt64 in [UInt64.max, memory.head + 32, memory.head &- UInt64(MN_CAPTURE_DATA) - 32, 1 << 63] {
      unsafe mn_store_release_u64(memory.base + 128, lie)
      send(1)
    }
    #expect(memory.dropped(local) == lost + 4)
    unsafe mn_store_release_u64(memory.base + 128, memory.head)
    send(1)
    #expect(memory.take().count == 1)
  }
}
