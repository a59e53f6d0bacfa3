import CLinux
import Dispatch
import Synchronization

/// Makes text of reports on a thread of its own: with thousands of sockets that takes a good part of a second, and the
/// control thread has programs to answer meanwhile.
///
/// One report at a time: whoever asks while one is being written gets the next, and shares it.
final class StatusWriter: Sendable {
  /// An eventfd, readable when `take` has something.
  let written: Descriptor
  private let render: @Sendable (StatusReport) throws -> String
  private let queue = DispatchQueue(label: "machnet-status")
  private let outcome = Mutex<Outcome?>(nil)

  /// A sealed memfd and its size, or why there is none.
  typealias Outcome = Result<(Descriptor, size: Int), any Error>

  init(render: @escaping @Sendable (StatusReport) throws -> String) throws(SystemError) {
    self.render = render
    written = try Descriptor(mn_linux_eventfd(), "make an eventfd")
  }

  func start(_ report: StatusReport) {
    queue.async { [self] in
      let result = Outcome {
        let text = try render(report)
        return (try textMemory(text), text.utf8.count)
      }
      outcome.withLock { $0 = result }
      mn_linux_eventfd_signal(written.number)
    }
  }

  /// What has been written since the last call.
  func take() -> Outcome? {
    _ = mn_linux_eventfd_take(written.number)
    return outcome.withLock { outcome in
      defer { outcome = nil }
      return outcome
    }
  }
}
