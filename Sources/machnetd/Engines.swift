import CLinux
import CMachnetABI
import Glibc
import MachnetControl
import MachnetEngine

/// All engines of the daemon and their threads.
final class Engines {
  let controls: [EngineControl]
  private let cpus: [Int?]
  private var threads: [EngineThread] = []

  init(_ config: Config, _ directory: DirectoryMemory, yields: Bool) throws(SystemError) {
    cpus = config.engine.cpus.isEmpty ? [nil] : config.engine.cpus.map { $0 }
    guard config.interfaces.isEmpty else {
      throw SystemError(ENOSYS, "serve interfaces in this build")
    }
    var controls: [EngineControl] = []
    for index in cpus.indices {
      var options = EngineOptions(index: UInt32(index), directory: directory.directory)
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

  func start() throws(SystemError) {
    for (control, cpu) in zip(controls, cpus) {
      let thread = EngineThread(control: control, cpu: cpu) {
        var engine = Engine<NoPackets>(control: control)
        engine.run()
      }
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
  }
}
