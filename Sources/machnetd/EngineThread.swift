import CLinux
import Glibc
import MachnetEngine

/// A thread for one engine.
final class EngineThread {
  private var thread = pthread_t()
  private let control: EngineControl

  private final class Start: Sendable {
    let name: String
    let cpu: Int?
    let body: @Sendable () -> Void
    init(name: String, cpu: Int?, body: @escaping @Sendable () -> Void) {
      self.name = name
      self.cpu = cpu
      self.body = body
    }
  }

  /// Runs `body` on a thread of its own, pinned to `cpu` if there is one.
  ///
  /// - Returns: nil when the system makes no more threads.
  init?(control: EngineControl, cpu: Int?, body: @escaping @Sendable () -> Void) {
    self.control = control
    let start = Start(name: "engine-\(control.options.index)", cpu: cpu, body: body)
    let status = unsafe pthread_create(
      &thread, nil,
      { raw in
        let start = unsafe Unmanaged<Start>.fromOpaque(raw!).takeRetainedValue()
        _ = unsafe mnc_name_thread(start.name)
        if let cpu = start.cpu { _ = mn_linux_pin(Int32(cpu)) }
        start.body()
        return nil
      }, Unmanaged.passRetained(start).toOpaque())
    if status != 0 { return nil }
  }

  /// Asks the engine to end and waits until it has.
  func stop() {
    control.stop()
    pthread_join(thread, nil)
  }
}
