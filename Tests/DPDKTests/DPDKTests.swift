import CLinux
import CMachnetABI
import Glibc
import MachnetChannel
import MachnetEngine
import Synchronization
import Testing

@testable import MachnetDPDK

private let log = Mutex<[String]>([])

/// Starts DPDK once for all tests of the process, as a daemon without NICs would.
private func startEAL() throws {
  try EAL.start { line in log.withLock { $0.append(line) } }
}

/// Two memif ports of this process, joined by a socket.
private func memifPair(_ number: Int) throws -> (DPDKDevice, DPDKDevice) {
  try startEAL()
  let socket = "/tmp/machnet-test-\(getpid())-\(number).sock"
  let server = try DPDKDevice.start("net_memif\(2 * number),role=server,socket=\(socket),id=\(number)")
  let client = try DPDKDevice.start("net_memif\(2 * number + 1),role=client,socket=\(socket),id=\(number)")
  return (server, client)
}

/// Lets a condition come true: memif connects on a thread of DPDK's.
private func eventually(seconds: UInt64 = 10, _ condition: () -> Bool) -> Bool {
  let limit = mn_linux_monotonic() + seconds * 1_000_000_000
  while !condition() {
    if mn_linux_monotonic() > limit { return false }
    mn_linux_yield()
  }
  return true
}

/// A daemon on a DPDK port, stepped by the test.
private final class DPDKHost {
  let directory: TestDirectory
  let control: EngineControl
  let channel = TestChannel(identifier: 1)
  private var engine: Engine<DPDKPort>

  init(_ device: DPDKDevice, _ address: UInt32) {
    let interface = InterfaceOptions(
      name: "net0", address: address, mask: 0xFFFF_FF00, mtu: device.mtu, mac: device.mac)
    directory = TestDirectory(interfaces: [interface])
    control = EngineControl(
      options: EngineOptions(index: 0, directory: directory.directory, interfaces: [interface]))!
    engine = Engine<DPDKPort>(control: control)
    engine.add(port: device.open(queue: 0))
    _ = try! unsafe control.addChannel(
      identifier: 1, base: channel.base, size: channel.size, doorbell: channel.doorbell)
  }

  func open(_ index: UInt32, _ address: UInt32, _ port: UInt16) -> Application {
    let application = Application(channel, index, directory.directory)
    _ = try! control.openEndpoint(application.reference, EndpointIdentity(address, port, application))
    return application
  }

  func step() { _ = engine.iterate() }

  func end() {
    control.stop()
    engine.run()
  }
}

/// DPDK's ports and threads belong to the process: one test at a time.
@Suite(.serialized) struct DPDKPorts {
  @Test func `memory comes from hugepages only when they are free, and PCI is left alone unless asked for`() {
    var options = EAL.Options()
    options.memoryMegabytes = 1 << 40
    #expect(EAL.arguments(options).contains("--no-huge"))
    #expect(EAL.arguments(options).contains("--no-pci"))
    options.pciDevices = ["0000:00:06.0"]
    #expect(!EAL.arguments(options).contains("--no-pci"))
    #expect(EAL.arguments(options).suffix(2) == ["-a", "0000:00:06.0"])
  }

  @Test func `a memif socket with a path is a file, unless the device says otherwise`() {
    #expect(DPDKDevice.complete("net_memif0,socket=/a").hasSuffix("socket-abstract=no"))
    #expect(!DPDKDevice.complete("net_memif0,socket=/a,socket-abstract=yes").hasSuffix("=no"))
    #expect(DPDKDevice.complete("net_null0") == "net_null0")
  }

  @Test func `what is not there is an error with its name`() throws {
    try startEAL()
    #expect(throws: DPDKError.self) { try DPDKDevice.start("net_nothing0") }
    #expect(throws: DPDKError.self) { try DPDKDevice.start("net_null7", queues: 4000) }
    // DPDK's own words went to our log, not to the terminal.
    #expect(log.withLock { !$0.isEmpty })
  }

  @Test func `bursts from the null device cost no packets`() throws {
    try startEAL()
    let device = try DPDKDevice.start("net_null0")
    #expect(device.descriptors <= 256 && device.mtu >= 576)
    do {
      var port = device.open(queue: 0)
      let burst = UnsafeMutablePointer<Packet>.allocate(capacity: packetBurst)
      defer { burst.deallocate() }
      let before = device.packetsInUse
      for _ in 0..<1000 {
        let received = port.receive(into: burst, capacity: packetBurst)
        #expect(received == packetBurst)
        #expect(burst[0].length > 0 && burst[0].capacity >= 1514)
        let sent = port.transmit(burst, count: received)
        if sent < received { port.free(burst + sent, count: received - sent) }
        #expect(port.allocate(into: burst, count: 7) == 7)
        #expect(burst[6].length == 0 && burst[6].capacity >= 1514)
        port.free(burst, count: 7)
      }
      // What is out is at most what caches hold.
      #expect(device.packetsInUse <= before + 512)
    }
    device.close()
  }

  @Test func `a pool that is empty says so, and works again when packets come back`() throws {
    try startEAL()
    let device = try DPDKDevice.start("net_null1")
    do {
      var port = device.open(queue: 0)
      let burst = UnsafeMutablePointer<Packet>.allocate(capacity: 4096)
      defer { burst.deallocate() }
      var held = 0
      while port.allocate(into: burst + held, count: packetBurst) == packetBurst { held += packetBurst }
      #expect(held > 1000 && held <= 2047)
      var at = 0
      while at < held {
        port.free(burst + at, count: packetBurst)
        at += packetBurst
      }
      #expect(port.allocate(into: burst, count: packetBurst) == packetBurst)
      port.free(burst, count: packetBurst)
    }
    device.close()
  }

  @Test func `two engines joined by memif carry datagrams of every size`() throws {
    let (server, client) = try memifPair(1)
    #expect(server.mac != client.mac)
    do {
      let a = DPDKHost(server, ip(10, 0, 0, 1))
      let b = DPDKHost(client, ip(10, 0, 0, 2))
      let alice = a.open(0, 0, 1000)
      let bob = b.open(0, 0, 2000)
      func exchange(_ payload: [UInt8]) -> Received? {
        var got: Received?
        _ = eventually {
          a.step()
          b.step()
          got = bob.receive()
          return got != nil
        }
        return got
      }
      // Until the link is up frames are lost, as on any wire.
      #expect(
        eventually {
          _ = alice.send([], to: ip(10, 0, 0, 2), 2000)
          for _ in 0..<100 {
            a.step()
            b.step()
          }
          return bob.receive() != nil
        })
      for _ in 0..<10_000 {
        a.step()
        b.step()
        while bob.receive() != nil {}
      }
      for length in [1, 64, 1472, 1473, 9000, 65_507] {
        let payload = (0..<length).map { UInt8(truncatingIfNeeded: $0 &* 13 &+ length) }
        #expect(alice.send(payload, to: ip(10, 0, 0, 2), 2000))
        let got = exchange(payload)
        #expect(got?.payload == payload, "length \(length)")
        #expect(got?.remote == ip(10, 0, 0, 1) && got?.local == ip(10, 0, 0, 2))
      }
      a.end()
      b.end()
    }
    server.close()
    client.close()
  }
}
