import ArgumentParser
import CLinux
import Glibc
import Logging
import MachnetControl
import MachnetDPDK
import MachnetSimulation
import Synchronization

/// A cloud network in a process.
@main
struct Fabric: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "machnet-fabric",
    abstract: "Joins machnetd daemons by a switch that loses, delays and spreads frames as a cloud network does.",
    discussion: """
      Every daemon gets a vNIC: a memif of N queues, over which received frames are spread by RSS with a key that only the \
      fabric knows. Faults come from a seed: with the same one, the n-th frame of a vNIC meets the same fate. SIGUSR1 \
      prints statistics; SIGTERM and SIGINT print them and end the fabric.

      Exit codes: 0 ended by a signal, or --check found nothing; 1 the config is wrong, or the fabric could not start; 64 the \
      command line is wrong.
      """,
    version: machnetVersion)

  @Option(name: .long, help: "The config file (YAML).")
  var config: String?

  @Option(name: .long, help: ArgumentHelp("A vNIC, instead of those in a file. Repeatable.", valueName: "NAME=SOCKET"))
  var vnic: [String] = []

  @Option(name: .long, help: "Queues of each --vnic: as many as the daemons' interfaces have.")
  var queues = 1

  @Option(name: .long, help: "Where all faults and RSS keys come from (default: $SEED, then the file, then a random one).")
  var seed: UInt64?

  @Option(name: .long, help: "Probability that a frame is lost (this and the following: for every vNIC, instead of the file's).")
  var loss: Double?
  @Option(name: .long, help: "Probability that a frame comes twice.")
  var duplication: Double?
  @Option(name: .long, help: "Probability that a frame is held up, so that others overtake it.")
  var reordering: Double?
  @Option(name: .long, help: "Probability that a frame has a wrong bit.")
  var corruption: Double?
  @Option(name: .long, help: "Delay of each cable, microseconds: a round trip has four.")
  var delayUs: Double?
  @Option(name: .long, help: "A frame's own extra delay is 0 to so many microseconds.")
  var jitterUs: Double?
  @Option(name: .long, help: "Bits per second of each cable: 100M, 10G; 0: unlimited.")
  var bandwidth: String?
  @Option(name: .long, help: "Bytes that may wait in the switch for each vNIC.")
  var queueLimit: Int?

  @Option(name: .long, help: "The CPU to run on.")
  var cpu: Int?
  @Flag(name: .long, help: "Print statistics as JSON, a line each time.")
  var json = false
  @Flag(name: .long, help: "Check config and options, say what is wrong with them, and end.")
  var check = false

  mutating func validate() throws {
    if (config == nil) == vnic.isEmpty { throw ValidationError("give either --config or --vnic") }
    guard (1...FabricConfig.queuesMax).contains(queues) else {
      throw ValidationError("--queues is 1 to \(FabricConfig.queuesMax)")
    }
    for probability in [loss, duplication, reordering, corruption].compactMap({ $0 }) {
      guard (0...1).contains(probability) else { throw ValidationError("a probability is 0 to 1, not \(probability)") }
    }
    for time in [delayUs, jitterUs].compactMap({ $0 }) {
      guard (0...3.6e9).contains(time) else { throw ValidationError("a delay is 0 to an hour, not \(time) us") }
    }
    if let bandwidth, Quantity.bandwidth(bandwidth) == nil {
      throw ValidationError("'\(bandwidth)' is no bandwidth: 100M, 10G, 0")
    }
    if let queueLimit, !(0...1 << 30).contains(queueLimit) { throw ValidationError("--queue-limit is 0 to 2^30") }
    if vnic.count > FabricConfig.vnicsMax { throw ValidationError("at most \(FabricConfig.vnicsMax) vNICs") }
  }

  func run() throws {
    let config = try completeConfig()
    if check {
      print("OK: \(config.vnics.count) vNICs")
      return
    }
    LoggingSystem.bootstrap { StreamLogHandler.standardError(label: $0) }
    let log = Logger(label: "machnet-fabric")
    let environmentSeed = unsafe getenv("SEED").flatMap { unsafe UInt64(String(cString: $0)) }
    let seed = seed ?? environmentSeed ?? config.seed ?? UInt64.random(in: 1...UInt64.max)
    _ = signal(SIGPIPE, SIG_IGN)
    Signals.install()
    // The driver makes the sockets as the process's mask says; whoever reaches one can end the fabric (DPDK 22.11).
    _ = umask(0o077)
    if let cpu = cpu ?? config.cpu, mn_linux_pin(Int32(cpu)) < 0 {
      log.critical("cannot run on CPU \(cpu); choose another by --cpu or cpu:")
      throw ExitCode.failure
    }
    let fabric: FabricSwitch
    do throws(DPDKError) {
      fabric = try FabricSwitch(config, seed: seed, log: log)
    } catch {
      log.critical("cannot \(error.doing): \(unsafe String(cString: strerror(error.code)))")
      throw ExitCode.failure
    }
    for vnic in config.vnics {
      log.info(
        "vNIC \(vnic.name): device: { vdev: \"net_memif0,role=client,socket=\(vnic.socket)\" }, queues: \(vnic.queues)")
    }
    log.info("machnet-fabric ready; seed \(seed) (--seed \(seed) replays the faults)")
    fabric.run {
      if Signals.takeReport() { show(fabric.report()) }
      return Signals.isStopped
    }
    show(fabric.report())
    fabric.close()
  }

  private func show(_ report: FabricReport) {
    print(json ? report.json : report.text)
    fflush(nil)
  }

  /// What file and options say together.
  private func completeConfig() throws -> FabricConfig {
    var complete = FabricConfig()
    if let config {
      do throws(ConfigFailure) {
        complete = try FabricConfig.load(file: config)
      } catch {
        complain(error.description)
        throw ExitCode.failure
      }
    }
    for text in vnic {
      let parts = text.split(separator: "=", maxSplits: 1).map(String.init)
      guard parts.count == 2, let name = VNICName.parse(parts[0]), let socket = VNICName.parseSocket(parts[1]),
        !complete.vnics.contains(where: { $0.name == name || $0.socket == socket })
      else { throw ValidationError("'\(text)' is no vNIC: NAME=/absolute/path, each of them once") }
      complete.vnics.append(
        FabricConfig.VNIC(name: name, socket: socket, queues: queues, link: FabricConfig.link, faults: .none))
    }
    for index in complete.vnics.indices { apply(&complete.vnics[index]) }
    return complete
  }

  private func apply(_ vnic: inout FabricConfig.VNIC) {
    vnic.faults.loss = loss ?? vnic.faults.loss
    vnic.faults.duplication = duplication ?? vnic.faults.duplication
    vnic.faults.reordering = reordering ?? vnic.faults.reordering
    vnic.faults.corruption = corruption ?? vnic.faults.corruption
    vnic.link.delay = delayUs.map { UInt64($0 * 1000) } ?? vnic.link.delay
    vnic.link.jitter = jitterUs.map { UInt64($0 * 1000) } ?? vnic.link.jitter
    vnic.link.bandwidth = bandwidth.flatMap { Quantity.bandwidth($0) } ?? vnic.link.bandwidth
    vnic.link.queueLimit = queueLimit ?? vnic.link.queueLimit
  }
}

/// What signals have asked for. Handlers may only store.
private enum Signals {
  private static let stop = Atomic<Bool>(false)
  private static let report = Atomic<Bool>(false)

  static var isStopped: Bool { stop.load(ordering: .relaxed) }
  static func takeReport() -> Bool {
    report.load(ordering: .relaxed) && report.exchange(false, ordering: .relaxed)
  }

  static func install() {
    // Both are there before a handler looks.
    _ = isStopped
    _ = takeReport()
    for number in [SIGTERM, SIGINT] { _ = signal(number) { _ in Signals.stop.store(true, ordering: .relaxed) } }
    _ = signal(SIGUSR1) { _ in Signals.report.store(true, ordering: .relaxed) }
  }
}

private func complain(_ message: String) {
  var text = message + "\n"
  text.withUTF8 { bytes in _ = unsafe write(STDERR_FILENO, bytes.baseAddress, bytes.count) }
}
