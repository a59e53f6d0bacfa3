import CLinux
import Glibc
import Synchronization

/// Closes descriptors that clients can make slow, each on a thread of its own.
///
/// The last close of a file can take as long as its owner likes: a file of a FUSE server waits for that (FUSE_FLUSH), a TCP socket
/// for SO_LINGER seconds. Clients can pass such descriptors, and have them lie unread in a connection.
final class SlowClose: Sendable {
  static let shared = SlowClose()

  private struct State {
    /// By user: threads that are closing something.
    var underWay: [UInt32: Int] = [:]
  }
  private let state = Mutex(State())

  private final class Job {
    let number: Int32
    let uid: UInt32
    init(_ number: Int32, _ uid: UInt32) {
      self.number = number
      self.uid = uid
    }
  }

  /// What a user's closes hold up now.
  func underWay(of uid: UInt32) -> Int { state.withLock { $0.underWay[uid] ?? 0 } }

  func close(_ number: Int32, of uid: UInt32) {
    state.withLock { $0.underWay[uid, default: 0] += 1 }
    let job = unsafe Unmanaged.passRetained(Job(number, uid))
    var attributes = pthread_attr_t()
    unsafe pthread_attr_init(&attributes)
    unsafe pthread_attr_setdetachstate(&attributes, Int32(PTHREAD_CREATE_DETACHED))
    unsafe pthread_attr_setstacksize(&attributes, 256 << 10)
    var thread = pthread_t()
    let error = unsafe pthread_create(
      &thread, &attributes,
      { context in
        SlowClose.shared.finish(unsafe Unmanaged<Job>.fromOpaque(context!).takeRetainedValue())
        return nil
      }, job.toOpaque())
    unsafe pthread_attr_destroy(&attributes)
    // Without a thread it is closed here: the system is at its end, and waits anyway.
    if error != 0 { finish(unsafe job.takeRetainedValue()) }
  }

  private func finish(_ job: Job) {
    mn_linux_close(job.number)
    state.withLock { state in
      let left = state.underWay[job.uid]! - 1
      state.underWay[job.uid] = left == 0 ? nil : left
    }
  }
}
