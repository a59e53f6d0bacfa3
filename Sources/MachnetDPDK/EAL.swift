import CDPDK
import Glibc
import Synchronization

/// A call of DPDK's that failed.
public struct DPDKError: Error, Sendable, CustomStringConvertible {
  /// What was tried.
  public let what: String
  /// An errno value.
  public let code: Int32

  public var description: String { "cannot \(what): \(unsafe String(cString: strerror(code)))" }

  /// The value of a call, or the error that its negative result stands for.
  static func check(_ value: Int32, _ what: @autoclosure () -> String) throws(DPDKError) -> Int32 {
    if value < 0 { throw DPDKError(what: what(), code: -value) }
    return value
  }
}

/// DPDK's environment. There is one per process, and it is started once.
public enum EAL {
  public struct Options: Sendable {
    /// Memory for packets, MB. Costs nothing until it is used.
    public var memoryMegabytes = 256
    /// PCI devices that may be touched ("0000:00:06.0"); with none, the PCI bus is not even looked at.
    public var pciDevices: [String] = []
    /// 1 (emergency) to 8 (debug); 5 is warning, 7 is informational.
    public var logLevel: Int32 = 5
    /// Further arguments, as DPDK takes them.
    public var arguments: [String] = []

    public init() {}
  }

  private static let started = Mutex(false)
  /// Who takes DPDK's log lines.
  private static let sink = Mutex<(@Sendable (String) -> Void)?>(nil)

  /// Starts DPDK: in hugepages if enough are free, without them if not; in memory only, so that daemons do not meet in
  /// the file system; without telemetry. Further calls do nothing.
  ///
  /// - Parameter log: takes what DPDK logs, a line at a time, on any thread.
  public static func start(_ options: Options = Options(), log: @escaping @Sendable (String) -> Void) throws(DPDKError)
  {
    try started.withLock { (started) throws(DPDKError) in
      if started { return }
      sink.withLock { $0 = log }
      _ = try DPDKError.check(
        unsafe mn_dpdk_log_to(
          { text, length in
            guard let text = unsafe text else { return }
            let line = unsafe String(
              decoding: UnsafeRawBufferPointer(start: text, count: length), as: UTF8.self)
            EAL.sink.withLock { $0 }?(line)
          }, options.logLevel), "redirect DPDK's log")
      try run(arguments(options))
      started = true
    }
  }

  static func arguments(_ options: Options) -> [String] {
    var arguments = [
      "machnetd", "--no-telemetry", "--file-prefix=machnet-\(getpid())",
      "--log-level=\(options.logLevel)",
      // One thread of DPDK's own, which is the caller; engines register themselves.
      "--lcores=0@\(mn_dpdk_first_cpu())", "-m", "\(options.memoryMegabytes)",
    ]
    // Without hugepages DPDK lays its memory out in the old way, which --in-memory does not go with.
    let hasHugepages = mn_dpdk_hugepage_bytes_free() >= UInt64(options.memoryMegabytes) << 20
    arguments += hasHugepages ? ["--in-memory"] : ["--no-huge", "--no-shconf"]
    if options.pciDevices.isEmpty { arguments.append("--no-pci") }
    for device in options.pciDevices { arguments += ["-a", device] }
    return arguments + options.arguments
  }

  private static func run(_ arguments: [String]) throws(DPDKError) {
    var strings = unsafe arguments.map { unsafe UnsafePointer(strdup($0)) }
    // The EAL keeps pointers into its arguments: they stay.
    let status = unsafe mn_dpdk_start(Int32(strings.count), &strings)
    _ = try DPDKError.check(status, "start DPDK (\(arguments.dropFirst().joined(separator: " ")))")
  }
}
