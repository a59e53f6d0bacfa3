import CLinux
import Logging
import MachnetDPDK
import MachnetEngine
import MachnetSimulation
import MachnetWire

/// The simulated network in real time, between memif ports. One thread.
final class FabricSwitch {
  private let network: SimulatedNetwork
  private let vnics: [VNIC]
  private let log: Logger
  private let start = mn_linux_monotonic()
  private var nextLook: UInt64 = 0

  /// One daemon's NIC.
  final class VNIC {
    let name: String
    let host: Int
    let queues: [Queue]
    let port: Port
    var isUp = false

    init(name: String, host: Int, port: Port) {
      self.name = name
      self.host = host
      self.port = port
      queues = (0..<port.queues).map { Queue(port, $0) }
    }
  }

  /// One queue pair, and frames that the memif has not taken yet.
  @safe
  final class Queue {
    var port: DPDKQueue
    /// Safety: room for `packetBurst` packets each, owned; of `out` the first `outCount` are frames.
    let into: UnsafeMutablePointer<Packet>
    let out: UnsafeMutablePointer<Packet>
    var outCount = 0
    var delivered: UInt64 = 0
    /// Frames that are longer than any buffer here.
    var tooLong: UInt64 = 0

    init(_ port: Port, _ number: Int) {
      self.port = DPDKQueue(port, queue: number)
      unsafe into = .allocate(capacity: packetBurst)
      unsafe out = .allocate(capacity: packetBurst)
    }

    deinit {
      unsafe into.deallocate()
      unsafe out.deallocate()
    }

    /// Gives frames back that will not leave any more.
    func clear() {
      unsafe port.free(out, count: outCount)
      outCount = 0
    }
  }

  private static var frameMax: Int { 2048 }

  /// Takes the sockets.
  init(_ config: FabricConfig, seed: UInt64, log: Logger) throws(DPDKError) {
    self.log = log
    var options = EAL.Options()
    // A queue's pool takes some 9 MB.
    options.memoryMegabytes = config.vnics.reduce(64) { $0 + $1.queues * 16 }
    try EAL.start(options)
    EAL.adoptThread()
    network = SimulatedNetwork(seed: seed, buffers: 1 << 17, bufferSize: FabricSwitch.frameMax)
    var vnics: [VNIC] = []
    for (number, vnic) in config.vnics.enumerated() {
      var options = Port.Options(
        device: .vdev("net_memif\(number),role=server,socket=\(vnic.socket),socket-abstract=no"))
      options.queues = vnic.queues
      let port = try Port(options)
      var host = HostOptions(queues: vnic.queues)
      host.link = vnic.link
      vnics.append(VNIC(name: vnic.name, host: network.addHost(host), port: port))
      network.setFaults(vnic.faults, from: number)
      network.setLinkUp(false, of: number)
    }
    self.vnics = vnics
    if let partitions = config.partitions { network.runPartitions(partitions, until: UInt64.max) }
  }

  private var now: UInt64 { mn_linux_monotonic() - start }

  /// Carries frames until `isStopped`; asked in every round.
  func run(_ isStopped: () -> Bool) {
    var rest = Rest()
    while !isStopped() {
      let time = now
      network.advance(to: time)
      if time >= nextLook { lookAtLinks(time) }
      var moved = 0
      for vnic in vnics where vnic.isUp {
        for (number, queue) in vnic.queues.enumerated() { moved += collect(vnic, queue, number) }
      }
      // What has no delay is there already.
      if moved > 0 { network.advance(to: now) }
      for vnic in vnics where vnic.isUp {
        for (number, queue) in vnic.queues.enumerated() { moved += deliver(vnic, queue, number) }
      }
      rest.take(moved: moved, now: time, nextEvent: network.nextEventTime)
    }
    // Frames under way are gone, as with any switch that is turned off.
    for vnic in vnics { for queue in vnic.queues { queue.clear() } }
  }

  func close() {
    for vnic in vnics { vnic.port.close() }
    EAL.stop()
  }

  /// From a daemon. No more than there are TX descriptors: the rest waits in the memif, as it would in a NIC's ring.
  private func collect(_ vnic: VNIC, _ queue: Queue, _ number: Int) -> Int {
    let room = network.room(from: vnic.host, queue: number)
    if room == 0 { return 0 }
    let count = unsafe queue.port.receive(into: queue.into, capacity: min(packetBurst, room))
    if count == 0 { return 0 }
    for index in 0..<count {
      let packet = unsafe queue.into[index]
      if Int(packet.length) > FabricSwitch.frameMax {
        queue.tooLong += 1
        continue
      }
      // A switch without buffers loses frames; the network counts them.
      _ = network.send(
        unsafe Bytes(unsafe: packet.data, count: Int(packet.length)), from: vnic.host, queue: number)
    }
    unsafe queue.port.free(queue.into, count: count)
    return count
  }

  /// To a daemon.
  private func deliver(_ vnic: VNIC, _ queue: Queue, _ number: Int) -> Int {
    var moved = 0
    while true {
      let wanted = min(packetBurst - queue.outCount, network.waiting(host: vnic.host, queue: number))
      if wanted > 0 {
        let given = unsafe queue.port.allocate(into: queue.out + queue.outCount, count: wanted)
        for index in queue.outCount..<queue.outCount + given {
          // As many as were waiting.
          let frame = network.receive(host: vnic.host, queue: number)!.frame
          unsafe Bytes(unsafe: queue.out[index].data, count: Int(queue.out[index].capacity)).copy(frame, to: 0)
          unsafe queue.out[index].length = Int32(frame.count)
        }
        queue.outCount += given
      }
      if queue.outCount == 0 { return moved }
      let taken = unsafe queue.port.transmit(queue.out, count: queue.outCount)
      moved += taken
      queue.delivered += UInt64(taken)
      queue.outCount -= taken
      unsafe queue.out.update(from: queue.out + taken, count: queue.outCount)
      if queue.outCount > 0 || network.waiting(host: vnic.host, queue: number) == 0 { return moved }
    }
  }

  private func lookAtLinks(_ time: UInt64) {
    nextLook = time + 10_000_000
    for vnic in vnics {
      let isUp = vnic.port.isLinkUp
      if isUp == vnic.isUp { continue }
      vnic.isUp = isUp
      log.info("vNIC \(vnic.name) is \(isUp ? "up" : "down")")
      network.setLinkUp(isUp, of: vnic.host)
      if !isUp {
        // The next daemon is another one: nothing that was meant for this one is for it.
        network.restart(vnic.host)
        for queue in vnic.queues { queue.clear() }
      }
    }
  }

  // MARK: Statistics

  func report() -> FabricReport {
    let reports = vnics.map { vnic in
      let delays = network.queueingDelay(to: vnic.host)
      return FabricReport.VNIC(
        name: vnic.name, isUp: vnic.isUp, counters: network.counters(of: vnic.host),
        tooLong: vnic.queues.reduce(0) { $0 + $1.tooLong }, deliveredByQueue: vnic.queues.map(\.delivered),
        queueing: [delays.percentile(50), delays.percentile(99), delays.max])
    }
    return FabricReport(seed: network.seed, nanoseconds: now, vnics: reports)
  }
}

/// When to let others have the core. As an engine: yields while there may be more, then sleeps, longer and longer.
private struct Rest {
  private var idleSince: UInt64 = 0
  private var interval = Rest.sleepMin

  /// How long the switch yields before it sleeps, ns; then the first and the longest sleep.
  private static let idleMax: UInt64 = 200_000
  private static let sleepMin: UInt64 = 100_000
  private static let sleepMax: UInt64 = 4_000_000

  mutating func take(moved: Int, now: UInt64, nextEvent: UInt64) {
    if moved > 0 {
      idleSince = now
      interval = Rest.sleepMin
      // A few frames are for somebody who may be waiting for this very core.
      if moved < packetBurst / 4 { mn_linux_yield() }
      return
    }
    let untilEvent = nextEvent > now ? nextEvent - now : 0
    if now - idleSince < Rest.idleMax || untilEvent < Rest.sleepMin {
      mn_linux_yield()
      return
    }
    mn_linux_sleep(min(interval, untilEvent - Rest.sleepMin / 2))
    interval = min(interval + interval / 16, Rest.sleepMax)
  }
}
