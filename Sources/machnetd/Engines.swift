import CLinux
import CMachnetABI
import Glibc
import MachnetControl
import MachnetDPDK
import MachnetEngine

/// All engines of the daemon, their threads, and the ports that they share.
final class Engines {
  let controls: [EngineControl]
  private let cpus: [Int?]
  private let ports: [Port]
  /// Per engine, in the order of its interfaces.
  private let queues: [[Queue]]
  private var threads: [EngineThread] = []

  private struct Queue: Sendable {
    let port: Port
    let number: Int
  }

  init(_ config: Config, _ directory: DirectoryMemory, yields: Bool) throws(SystemError) {
    cpus = config.engine.cpus.isEmpty ? [nil] : config.engine.cpus.map { $0 }
    ports = try Engines.openPorts(config.interfaces)
    var queues: [[Queue]] = cpus.map { _ in [] }
    var interfaces: [[InterfaceOptions]] = cpus.map { _ in [] }
    // The queues of all interfaces are dealt to the engines in turn.
    var turn = 0
    for (interface, port) in zip(config.interfaces, ports) {
      for number in 0..<port.queues {
        var options = InterfaceOptions(
          name: interface.name, address: interface.prefix.address.value, mask: interface.prefix.mask,
          gateway: interface.gateway?.value ?? 0, mtu: port.mtu, mac: port.mac)
        options.queue = number
        interfaces[turn].append(options)
        queues[turn].append(Queue(port: port, number: number))
        turn = (turn + 1) % cpus.count
      }
    }
    self.queues = queues
    directory.install(
      interfaces: zip(config.interfaces, ports).map { interface, port in
        mn_interface(
          address: interface.prefix.address.value, mask: interface.prefix.mask, gateway: interface.gateway?.value ?? 0,
          mtu: UInt32(port.mtu))
      })
    var controls: [EngineControl] = []
    for index in cpus.indices {
      var options = EngineOptions(
        index: UInt32(index), directory: directory.directory, interfaces: interfaces[index])
      options.polling = config.engine.polling
      options.idleMicroseconds = config.engine.idleMicroseconds
      options.separateHosts = config.engine.separateHosts
      options.sharesCore = yields
      guard let control = EngineControl(options: options) else {
        throw SystemError(ENOMEM, "reserve the memory of engine \(index)")
      }
      controls.append(control)
    }
    self.controls = controls
  }

  /// Starts DPDK if it is needed at all, and takes the devices.
  private static func openPorts(_ interfaces: [Config.Interface]) throws(SystemError) -> [Port] {
    if interfaces.isEmpty { return [] }
    let devices = interfaces.map { interface -> Device in
      switch interface.device {
      case .pci(let address): .pci(address)
      case .vdev(let text): .vdev(text)
      }
    }
    var options = EAL.Options()
    options.pciAddresses = devices.compactMap { if case .pci(let address) = $0 { address } else { nil } }
    // A queue's packets take 10 MB, its driver some more.
    options.memoryMegabytes = 64 + 16 * interfaces.reduce(0) { $0 + $1.queues }
    var ports: [Port] = []
    do throws(DPDKError) {
      try EAL.start(options)
      for (interface, device) in zip(interfaces, devices) {
        var options = Port.Options(device: device)
        options.queues = interface.queues
        ports.append(try Port(options))
      }
    } catch {
      throw SystemError(error.code, error.doing)
    }
    return ports
  }

  func start() throws(SystemError) {
    for (index, control) in controls.enumerated() {
      let cpu = cpus[index]
      let queues = queues[index]
      let thread = EngineThread(control: control, cpu: cpu) { Engines.run(control, queues, isPinned: cpu != nil) }
      guard let thread else { throw SystemError(EAGAIN, "start the thread of engine \(control.options.index)") }
      threads.append(thread)
    }
    for control in controls { try awaitFirstIteration(of: control) }
  }

  /// An engine reserves its memory on its own thread; only then does it take orders.
  private func awaitFirstIteration(of control: EngineControl) throws(SystemError) {
    let limit = mn_linux_monotonic() + 10_000_000_000
    while control.counters()[.iterations] == 0 {
      guard mn_linux_monotonic() < limit else {
        throw SystemError(ETIMEDOUT, "start engine \(control.options.index) within 10 seconds")
      }
      mn_linux_sleep(100_000)
    }
  }

  func stop() {
    for thread in threads { thread.stop() }
    threads = []
    if ports.isEmpty { return }
    for port in ports { port.close() }
    EAL.stop()
  }

  /// An engine's whole life, on its own thread.
  private static func run(_ control: EngineControl, _ queues: [Queue], isPinned: Bool) {
    guard let first = queues.first else {
      var engine = Engine<NoPackets>(control: control)
      return engine.run()
    }
    // What the engine reserves lies where its NIC does; and so does the engine, unless the config places it.
    if let node = first.port.node {
      if !isPinned { NUMA.run(onNode: node) }
      NUMA.prefer(node: node)
    }
    EAL.adoptThread()
    var engine = Engine<DPDKQueue>(control: control)
    for queue in queues { engine.add(port: DPDKQueue(queue.port, queue: queue.number)) }
    engine.run()
    EAL.releaseThread()
  }
}
