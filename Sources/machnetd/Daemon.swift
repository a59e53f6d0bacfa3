import ArgumentParser
import CLinux
import Glibc
import Logging
import MachnetControl
import MachnetEngine
import MachnetMetrics

/// The process with all engines.
@main
struct Daemon: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "machnetd",
    abstract: "Serves UDP sockets of unmodified programs from user space.",
    discussion: """
      SIGHUP reads the flows of the config again; SIGTERM and SIGINT end the daemon, and programs go on through the \
      kernel. machnetd.yaml(5) has the keys of the config.

      Exit codes: 0 ended by a signal, or --check found nothing; 1 the config is wrong, the daemon could not start, or an engine hangs \
      (stall-s in the config); 64 the \
      command line is wrong.
      """,
    version: machnetVersion)

  @Option(name: .long, help: "The config file (YAML).")
  var config = Self.defaultConfig

  private static let defaultConfig = "/etc/machnet/machnetd.yaml"

  @Flag(name: .long, help: "Check the config, say what is wrong with it, and end.")
  var check = false

  @Option(
    name: .long, help: "The least severe messages to print: trace, debug, info, notice, warning, error, critical.",
    transform: { text in
      guard let level = Logger.Level(rawValue: text) else { throw ValidationError("'\(text)' is no log level") }
      return level
    })
  var logLevel = Logger.Level.info

  @Flag(name: .long, help: "Stay in the foreground (it always does).")
  var foreground = false

  func run() throws {
    let config: Config
    do throws(ConfigFailure) {
      config = try Config.load(file: self.config)
    } catch {
      complain(error.description)
      if unsafe self.config == Self.defaultConfig && access(self.config, F_OK) != 0 {
        complain("machnetd: --config names another file; machnetd.yaml(5) shows what stands in one")
      }
      throw ExitCode.failure
    }
    if check {
      print("\(self.config): OK: \(summary(config))")
      return
    }
    let level = logLevel
    LoggingSystem.bootstrap { label in
      var handler = StreamLogHandler.standardError(label: label)
      handler.logLevel = level
      return handler
    }
    let log = Logger(label: "machnetd")
    do {
      try serve(config, log)
    } catch let error as SystemError {
      log.critical("cannot \(error)")
      throw ExitCode.failure
    }
  }

  private func serve(_ config: Config, _ log: Logger) throws {
    var files: UInt64 = 0
    if unsafe mnc_raise_descriptor_limit(&files) < 0 || files < UInt64(config.channel.maximumEndpoints) {
      log.warning("only \(files) file descriptors are allowed; sockets beyond that stay on the kernel (ulimit -Hn)")
    }
    // Who reads our log may go away.
    _ = signal(SIGPIPE, SIG_IGN)
    // Before there are other threads, so that none of them takes the signals.
    let signals = try ControlServer.blockSignals()
    let socket = try ControlSocket(config.control)
    let machine = Machine.current
    let directory = try DirectoryMemory(config: config, processors: machine.processors.count)
    let yields = config.waiting.yields(processors: machine.processors.count)
    if let hint = Scheduling.hint(yields: yields) { log.info("\(hint)") }
    let engines = try Engines(config, directory, sharesCores: yields)
    let file = self.config
    let server = try ControlServer(
      config: config, socket: socket, directory: directory, engines: engines.controls, log: log, signals: signals,
      reread: { try Config.load(file: file) })
    let outcome = Result {
      try engines.start()
      let metrics = try config.metrics.listen.map { try MetricsServer(listen: $0, control: config.control) }
      defer { metrics?.stop() }
      if let listen = config.metrics.listen { log.info("metrics for Prometheus at \(listen)") }
      log.info("\(summary(config)); control socket \(config.control.socket)")
      log.info("machnetd ready")
      if let manager = unsafe getenv("NOTIFY_SOCKET") { _ = unsafe mnc_notify(manager, "READY=1") }
      try server.run()
    }
    if case .failure(let stall as StalledEngine) = outcome {
      log.critical("\(stall)")
      // Its thread would be waited for in vain.
      _exit(EXIT_FAILURE)
    }
    // The engines work in memory that server and directory own.
    withExtendedLifetime((server, directory)) { engines.stop() }
    try outcome.get()
    log.info("machnetd has stopped")
  }

  private func summary(_ config: Config) -> String {
    func count(_ number: Int, _ noun: String) -> String { "\(number) \(noun)\(number == 1 ? "" : "s")" }
    var parts = [
      count(config.interfaces.count, "interface"), count(config.engine.count, "engine"),
      count(config.flows.count, "flow rule"),
    ]
    // Without an interface there are no sessions.
    if !config.interfaces.isEmpty { parts.append("sessions in at most \(Engines.sessionMemory(config) >> 20) MiB") }
    return parts.joined(separator: ", ")
  }
}

private func complain(_ message: String) {
  var text = message + "\n"
  text.withUTF8 { bytes in _ = unsafe write(STDERR_FILENO, bytes.baseAddress, bytes.count) }
}
