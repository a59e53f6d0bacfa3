import Glibc
import MachnetDPDK
import MachnetEngine
import Testing

@Suite(.serialized) struct PortTests {
  init() throws {
    try layer.get()
    EAL.adoptThread()
  }

  @Test func theLayerStartsOnlyOnce() {
    #expect(throws: DPDKError(EALREADY, "start DPDK without hugepages")) {
      var options = EAL.Options()
      options.usesHugepages = false
      try EAL.start(options)
    }
  }

  @Test func twoMemifPortsExchangeBurstsBothWays() throws {
    let directory = try TemporaryDirectory()
    let (server, client) = try memifPair(directory)
    defer {
      client.close()
      server.close()
    }
    #expect(server.mtu == 1500 && client.mtu == 1500)
    #expect(server.mac != client.mac && server.mac >> 48 == 0)
    var near = DPDKQueue(server, queue: 0)
    var far = DPDKQueue(client, queue: 0)
    connect(&near, &far)
    let free = server.packetsAvailable
    // Beyond the rings (1024 slots) several times.
    for turn in 0..<200 {
      let count = turn % packetBurst + 1
      exchange(&near, &far, count: count, turn: turn)
      exchange(&far, &near, count: count, turn: turn)
    }
    // Nothing has leaked but what the driver keeps ready to receive into.
    #expect(server.packetsAvailable >= free - 300)
    let statistics = client.statistics()
    #expect(statistics.segmented == 0 && statistics.sentPackets == statistics.receivedPackets)
    #expect(statistics.sentPackets > 3000)
  }

  @Test func aMemifOfSeveralQueuesKeepsThemApart() throws {
    let directory = try TemporaryDirectory()
    let (server, client) = try memifPair(directory, packets: 4095, queues: 4)
    defer {
      client.close()
      server.close()
    }
    var near0 = DPDKQueue(server, queue: 0), near1 = DPDKQueue(server, queue: 1)
    var near2 = DPDKQueue(server, queue: 2), near3 = DPDKQueue(server, queue: 3)
    var far0 = DPDKQueue(client, queue: 0), far1 = DPDKQueue(client, queue: 1)
    var far2 = DPDKQueue(client, queue: 2), far3 = DPDKQueue(client, queue: 3)
    connect(&near0, &far0)
    connect(&near1, &far1)
    connect(&near2, &far2)
    connect(&near3, &far3)
    for turn in 0..<40 {
      // Each queue's frames are told by what is in them.
      exchange(&near3, &far3, count: 7, turn: turn * 4 + 3)
      exchange(&far0, &near0, count: 5, turn: turn * 4)
      exchange(&near1, &far1, count: 32, turn: turn * 4 + 1)
      exchange(&far2, &near2, count: 1, turn: turn * 4 + 2)
      exchange(&far3, &near3, count: 9, turn: turn * 4 + 3)
      exchange(&near0, &far0, count: 3, turn: turn * 4)
    }
    let burst = Burst()
    for count in unsafe [
      near0.receive(into: burst.base, capacity: 1), near1.receive(into: burst.base, capacity: 1),
      near2.receive(into: burst.base, capacity: 1), near3.receive(into: burst.base, capacity: 1),
      far0.receive(into: burst.base, capacity: 1), far1.receive(into: burst.base, capacity: 1),
      far2.receive(into: burst.base, capacity: 1), far3.receive(into: burst.base, capacity: 1),
    ] { #expect(count == 0) }
  }

  /// Waits for the link. A memif client offers buffers for what it will receive at its first look.
  private func connect(_ one: inout DPDKQueue, _ other: inout DPDKQueue) {
    eventually("no link") { one.isLinkUp() && other.isLinkUp() }
    let burst = Burst()
    #expect(unsafe one.receive(into: burst.base, capacity: packetBurst) == 0)
    #expect(unsafe other.receive(into: burst.base, capacity: packetBurst) == 0)
  }

  /// Sends `count` frames of growing size, and takes them out at the other end.
  private func exchange(_ from: inout DPDKQueue, _ to: inout DPDKQueue, count: Int, turn: Int) {
    let out = Burst()
    let into = Burst()
    #expect(unsafe from.allocate(into: out.base, count: count) == count)
    let frames = (0..<count).map { number in
      [UInt8](repeating: UInt8(truncatingIfNeeded: turn &* 31 &+ number), count: 60 + (number * 47) % 1455)
    }
    for (index, frame) in frames.enumerated() { out.fill(index, frame) }
    #expect(unsafe from.transmit(out.base, count: count) == count)
    var received: [[UInt8]] = []
    eventually("only \(received.count) of \(count) frames arrived") {
      let burst = unsafe to.receive(into: into.base, capacity: packetBurst)
      for index in 0..<burst { received.append(into.bytes(index)) }
      unsafe to.free(into.base, count: burst)
      return received.count >= count
    }
    #expect(received == frames)
  }

  @Test func aShortFrameIsPaddedWithZeros() throws {
    let directory = try TemporaryDirectory()
    let (server, client) = try memifPair(directory)
    defer {
      client.close()
      server.close()
    }
    var sender = DPDKQueue(client, queue: 0)
    var receiver = DPDKQueue(server, queue: 0)
    connect(&sender, &receiver)
    let burst = Burst()
    // What lay in the packet before must not go out.
    try #require(unsafe sender.allocate(into: burst.base, count: 1) == 1)
    burst.fill(0, [UInt8](repeating: 0xEE, count: 60))
    burst.fill(0, [UInt8](repeating: 7, count: 42))
    try #require(unsafe sender.transmit(burst.base, count: 1) == 1)
    var frame: [UInt8] = []
    eventually("nothing arrived") {
      guard unsafe receiver.receive(into: burst.base, capacity: 1) == 1 else { return false }
      frame = burst.bytes(0)
      unsafe receiver.free(burst.base, count: 1)
      return true
    }
    #expect(frame == [UInt8](repeating: 7, count: 42) + [UInt8](repeating: 0, count: 18))
  }

  @Test func anExhaustedPoolGivesWhatItHas() throws {
    var options = Port.Options(device: .vdev("net_null0"))
    options.packets = 1023
    let port = try Port(options)
    defer { port.close() }
    var queue = DPDKQueue(port, queue: 0)
    let all = UnsafeMutablePointer<Packet>.allocate(capacity: 1024)
    defer { unsafe all.deallocate() }
    var held = 0
    while true {
      let count = unsafe queue.allocate(into: all + held, count: min(packetBurst, 1024 - held))
      held += count
      if count == 0 { break }
      #expect(held < 1024)
    }
    #expect(held == 1023)
    #expect(Set((0..<held).map { unsafe UInt(bitPattern: all[$0].handle) }).count == held)
    #expect((0..<held).allSatisfy { unsafe all[$0].length == 0 && all[$0].capacity >= 1518 })
    // The pool is of use again as soon as something is back.
    unsafe queue.free(all, count: 5)
    #expect(unsafe queue.allocate(into: all, count: packetBurst) == 5)
    unsafe queue.free(all, count: held)
    #expect(port.packetsAvailable == 1023)
  }

  @Test func aNullDeviceReceivesForEver() throws {
    let port = try Port(Port.Options(device: .vdev("net_null1,size=64")))
    defer { port.close() }
    var queue = DPDKQueue(port, queue: 0)
    let burst = Burst()
    for _ in 0..<1000 {
      let count = unsafe queue.receive(into: burst.base, capacity: packetBurst)
      #expect(count == packetBurst)
      #expect(unsafe burst.base[0].length == 64)
      unsafe queue.free(burst.base, count: count)
    }
    #expect(queue.wakeDescriptor == -1)
  }

  @Test func whatIsNotThereIsAnErrorWithAName() {
    for (device, text) in [
      (Device.vdev("net_nosuchdriver0"), "net_nosuchdriver0"), (.pci("0000:7f:1f.7"), "0000:7f:1f.7"),
      (.vdev("net_af_packet9,iface=nosuchiface"), "net_af_packet9"),
      (.vmbus("7a08391f-f5a0-4ac0-9802-d13fd964f8df"), "7a08391f-f5a0-4ac0-9802-d13fd964f8df"),
    ] {
      do throws(DPDKError) {
        _ = try Port(Port.Options(device: device))
        Issue.record("\(device) was taken")
      } catch {
        #expect(error.code > 0 && error.doing.contains(text), "\(error)")
      }
    }
  }

  @Test func moreQueuesThanTheDeviceHasAreRefused() throws {
    var options = Port.Options(device: .vdev("net_null2"))
    options.queues = 17
    #expect(throws: DPDKError.self) { try Port(options) }
    // And the device is not left behind.
    options.queues = 2
    let port = try Port(options)
    #expect(port.queues == 2)
    #expect(throws: DPDKError(EEXIST, "make a second net_null2")) { try Port(options) }
    port.close()
  }

  @Test func aKilledServersSocketIsNoObstacle() throws {
    let directory = try TemporaryDirectory()
    let path = "\(directory.path)/memif.sock"
    // Bound and closed: the file stays, nobody listens.
    let old = socket(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: path.utf8) }
    let bound = unsafe withUnsafePointer(to: &address) {
      unsafe $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        unsafe bind(old, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    close(old)
    try #require(bound == 0)
    let port = try Port(Port.Options(device: .vdev("net_memif2,role=server,socket=\(path)")))
    port.close()
  }

  @Test func aLivingServersSocketIsLeftToIt() throws {
    let directory = try TemporaryDirectory()
    let (server, client) = try memifPair(directory)
    defer {
      client.close()
      server.close()
    }
    let path = "\(directory.path)/memif.sock"
    // In this process the driver lets servers share a socket; what stands for another process is the socket itself.
    #expect(throws: DPDKError(EADDRINUSE, "listen on \(path)")) { try Device.removeStaleSocket(path) }
    var sender = DPDKQueue(client, queue: 0)
    var receiver = DPDKQueue(server, queue: 0)
    connect(&sender, &receiver)
    exchange(&sender, &receiver, count: 3, turn: 0)
  }

  @Test(.enabled(if: geteuid() == 0, "needs root for a packet socket")) func aPacketSocketWakesASleepingEngine() throws {
    // Loopback of this network namespace: one datagram to nobody is traffic of ours.
    let port = try Port(Port.Options(device: .vdev("net_af_packet0,iface=lo")))
    defer { port.close() }
    var queue = DPDKQueue(port, queue: 0)
    let wake = queue.wakeDescriptor
    try #require(wake >= 0)
    let burst = Burst()
    let sender = socket(AF_INET, Int32(SOCK_DGRAM.rawValue), 0)
    defer { close(sender) }
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = UInt16(9).bigEndian
    address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
    let payload = Array("wake up, engine".utf8)
    let sent = unsafe withUnsafePointer(to: &address) {
      unsafe $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        unsafe sendto(sender, payload, payload.count, 0, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
      }
    }
    try #require(sent == payload.count)
    var event = pollfd(fd: wake, events: Int16(POLLIN), revents: 0)
    #expect(unsafe poll(&event, 1, 20_000) == 1)
    var seen = false
    eventually("the datagram did not arrive") {
      let count = unsafe queue.receive(into: burst.base, capacity: packetBurst)
      for index in 0..<count where burst.bytes(index).suffix(payload.count).elementsEqual(payload) { seen = true }
      unsafe queue.free(burst.base, count: count)
      return seen
    }
  }
}

@Suite struct EALTests {
  @Test func withoutAPCIDeviceTheBusIsLeftAlone() {
    let arguments = EAL.arguments(EAL.Options(), hugepages: false)
    #expect(arguments.contains("--no-pci") && arguments.contains("--no-huge"))
    #expect(arguments.contains("--no-shconf") && arguments.contains("--no-telemetry"))
  }

  @Test func aPCIDeviceIsTheOnlyOneTaken() {
    var options = EAL.Options()
    options.pciAddresses = ["0000:00:06.0"]
    let arguments = EAL.arguments(options, hugepages: true)
    #expect(!arguments.contains("--no-pci") && !arguments.contains("--no-huge") && arguments.contains("--in-memory"))
    #expect(arguments.firstIndex(of: "-a").map { arguments[$0 + 1] } == "0000:00:06.0")
  }

  @Test func aVMBusDeviceIsNamedAndGetsPhysicalAddresses() throws {
    var options = EAL.Options()
    options.vmbusDevices = ["7a08391f-f5a0-4ac0-9802-d13fd964f8df"]
    let alone = EAL.arguments(options, hugepages: true)
    #expect(alone.contains("--no-pci"))
    #expect(alone.firstIndex(of: "-a").map { alone[$0 + 1] } == "vmbus:7a08391f-f5a0-4ac0-9802-d13fd964f8df")
    #expect(alone.firstIndex(of: "--iova-mode").map { alone[$0 + 1] } == "pa")
    options.pciAddresses = ["0002:00:02.0"]
    let withFunction = EAL.arguments(options, hugepages: true)
    #expect(!withFunction.contains("--no-pci") && withFunction.count { $0 == "-a" } == 2)
    options.usesHugepages = false
    #expect(throws: DPDKError.self) { try EAL.start(options) }
  }

  @Test func freeHugepagesOfAllSizesCount() throws {
    let directory = try TemporaryDirectory()
    #expect(EAL.freeHugepageMegabytes(under: directory.path) == 0)
    #expect(EAL.freeHugepageMegabytes(under: "/nonexistent") == 0)
    for (name, count) in [("hugepages-2048kB", "5\n"), ("hugepages-1048576kB", "2\n")] {
      let pages = "\(directory.path)/\(name)"
      try #require(unsafe mkdir(pages, 0o700) == 0)
      let file = unsafe open("\(pages)/free_hugepages", O_WRONLY | O_CREAT, 0o600)
      _ = unsafe write(file, count, count.utf8.count)
      close(file)
    }
    #expect(EAL.freeHugepageMegabytes(under: directory.path) == 5 * 2 + 2 * 1024)
    for name in ["hugepages-2048kB", "hugepages-1048576kB"] {
      unsafe unlink("\(directory.path)/\(name)/free_hugepages")
      unsafe rmdir("\(directory.path)/\(name)")
    }
  }

  @Test func aMemifPathIsAPath() {
    #expect(Device.completed("net_memif0,socket=/a/b") == "net_memif0,socket=/a/b,socket-abstract=no")
    for kept in ["net_memif0,socket=/a/b,socket-abstract=yes", "net_memif0,socket=name", "net_memif0", "net_null0"] {
      #expect(Device.completed(kept) == kept)
    }
    #expect(Device.memifSocket("net_memif0,socket=/a/b,socket-abstract=yes") == nil)
    #expect(Device.vdev("net_memif0,socket=/a/b").name == "net_memif0")
  }
}
