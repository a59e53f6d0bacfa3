import CLinux
import CMachnetABI
import Glibc
import MachnetControl
import MachnetDPDK
import MachnetEngine
import MachnetTransport

/// All engines of the daemon, their threads and the ports that they serve.
final class Engines {
  let controls: [EngineControl]
  /// By interface, in the config's order. Without interfaces DPDK is not even started.
  private let ports: [Port]
  /// The queues of each engine, in the order of its options' interfaces.
  private let queues: [[Assignment]]
  private let cpus: [Int?]
  private var threads: [EngineThread] = []

  struct Assignment: Sendable {
    let port: Port
    let queue: Int
  }

  /// Takes the devices and publishes the interfaces in the directory.
  ///
  /// - Parameter sharesCores: whether applications are likely to run on the engines' CPUs.
  init(_ config: Config, _ directory: DirectoryMemory, sharesCores: Bool) throws(SystemError) {
    cpus = config.engine.cpus.isEmpty ? [nil] : config.engine.cpus.map { $0 }
    ports = try Self.openPorts(config.interfaces)
    directory.install(
      interfaces: zip(config.interfaces, ports).map { interface, port in
        mn_interface(
          address: interface.prefix.address.value, mask: interface.prefix.mask, gateway: interface.gateway?.value ?? 0,
          mtu: UInt32(port.mtu))
      })

    // All queues are dealt to the engines in turn.
    var queues = [[Assignment]](repeating: [], count: cpus.count)
    var options = cpus.indices.map { EngineOptions(index: UInt32($0), directory: directory.directory) }
    var dealt = 0
    for (interface, port) in zip(config.interfaces, ports) {
      for queue in 0..<interface.queues {
        let engine = dealt % cpus.count
        dealt += 1
        var description = InterfaceOptions(
          name: interface.name, address: interface.prefix.address.value, mask: interface.prefix.mask,
          gateway: interface.gateway?.value ?? 0, mtu: port.mtu, mac: port.mac)
        description.queue = queue
        description.queues = interface.queues
        options[engine].interfaces.append(description)
        queues[engine].append(Assignment(port: port, queue: queue))
      }
    }
    self.queues = queues

    var controls: [EngineControl] = []
    for index in cpus.indices {
      options[index].polling = config.engine.polling
      options[index].idleMicroseconds = config.engine.idleMicroseconds
      options[index].separateHosts = config.engine.separateHosts
      options[index].sharesCore = sharesCores
      options[index].transport.epoch = directory.epoch | 1
      Self.set(config.transport, &options[index].transport)
      options[index].parkings = config.transport.parkings
      options[index].pauseMilliseconds = config.transport.pauseMilliseconds
      guard let control = EngineControl(options: options[index]) else {
        throw SystemError(ENOMEM, "reserve the memory of engine \(index)")
      }
      controls.append(control)
    }
    EngineControl.introduce(controls)
    self.controls = controls
    // Channels belong where the packets are.
    if let node = ports.first?.node { NUMA.prefer(node: node) }
  }

  private static func set(_ transport: Config.Transport, _ options: inout TransportOptions) {
    options.portBase = transport.ports.lowerBound
    options.portCount = UInt16(transport.ports.count)
    options.targetDelay = UInt64(transport.targetDelayMicroseconds) * 1000
    options.sessions = transport.sessions
    options.buffers = transport.packets
    options.assemblies = transport.assemblies
    options.largeAssemblies = transport.largeAssemblies
  }

  /// Bytes that sessions can come to use in all engines together, where interfaces without an MTU in the config have 1,500.
  static func sessionMemory(_ config: Config) -> Int {
    var options = TransportOptions(engine: 0, engines: 1, epoch: 1, seed: (0, 0))
    set(config.transport, &options)
    var sum = config.engine.count * config.transport.parkings * EngineOptions.parkingBytes
    for interface in config.interfaces {
      options.datagramMax = EngineOptions.sessionDatagram(mtu: interface.mtu ?? 1500)
      sum += interface.queues * (options.memory + options.sessions * EngineOptions.sessionBytes)
    }
    return sum
  }

  private static func openPorts(_ interfaces: [Config.Interface]) throws(SystemError) -> [Port] {
    guard !interfaces.isEmpty else { return [] }
    var options = EAL.Options()
    for interface in interfaces {
      switch interface.device {
      case .pci(let address): options.pciAddresses.append(address)
      case .vmbus(let uuid, let virtualFunction):
        options.vmbusDevices.append(uuid)
        // The driver of the VMBus device finds its function by the Ethernet address, among the ports that there are.
        if let virtualFunction { options.pciAddresses.append(virtualFunction) }
      case .vdev: break
      }
    }
    // A queue's pool takes some 9 MB at the usual MTU; larger frames take more.
    options.memoryMegabytes = interfaces.reduce(96) { $0 + $1.queues * (16 + 8 * ($1.mtu ?? 1500) / 2048) }
    do throws(DPDKError) {
      try EAL.start(options)
    } catch {
      throw SystemError(error.code, "\(error.doing); it takes \(options.memoryMegabytes) MB (are memory and permissions there?)")
    }
    var ports: [Port] = []
    for interface in interfaces {
      var options = Port.Options(device: device(of: interface))
      options.queues = interface.queues
      options.mtu = interface.mtu
      do throws(DPDKError) {
        ports.append(try Port(options))
      } catch {
        for port in ports { port.close() }
        throw SystemError(error.code, "\(error.doing) for interface '\(interface.name)' (\(advice(interface.device)))")
      }
    }
    return ports
  }

  private static func device(of interface: Config.Interface) -> Device {
    switch interface.device {
    case .pci(let address): .pci(address)
    case .vmbus(let uuid, _): .vmbus(uuid)
    case .vdev(let text): .vdev(text)
    }
  }

  private static func advice(_ device: Config.Interface.Device) -> String {
    switch device {
    case .pci: "is the device there, and bound to a driver that DPDK can use? dpdk-devbind.py --status says"
    case .vmbus: "is it bound to uio_hv_generic? ls /sys/bus/vmbus/drivers/uio_hv_generic says; and is this process root, as the driver wants?"
    case .vdev: "are its arguments what the DPDK driver of that name takes, and what they name there?"
    }
  }

  func start() throws(SystemError) {
    for (index, control) in controls.enumerated() {
      let assignments = queues[index]
      let thread = EngineThread(control: control, cpu: cpus[index]) { [cpu = cpus[index]] in
        Engines.serve(control, assignments, isPinned: cpu != nil)
      }
      guard let thread else { throw SystemError(EAGAIN, "start the thread of engine \(index)") }
      threads.append(thread)
    }
    for control in controls { try awaitFirstIteration(of: control) }
  }

  /// An engine's life, on its own thread: what it allocates is near its queues.
  private static func serve(_ control: EngineControl, _ assignments: [Assignment], isPinned: Bool) {
    guard let first = assignments.first else {
      var engine = Engine<NoPackets>(control: control)
      engine.run()
      return
    }
    if let node = first.port.node {
      if !isPinned { NUMA.run(onNode: node) }
      NUMA.prefer(node: node)
    }
    EAL.adoptThread()
    serve(control, assignments)
    EAL.releaseThread()
  }

  /// Queues and packets are given back when this returns.
  private static func serve(_ control: EngineControl, _ assignments: [Assignment]) {
    var engine = Engine<DPDKQueue>(control: control)
    for assignment in assignments { engine.add(port: DPDKQueue(assignment.port, queue: assignment.queue)) }
    engine.run()
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

  /// Ends the threads, then gives the devices back.
  func stop() {
    for thread in threads { thread.stop() }
    threads = []
    for port in ports { port.close() }
    if !ports.isEmpty { EAL.stop() }
  }
}
