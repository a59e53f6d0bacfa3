import Foundation

/// What the kernel's scheduler makes of an engine that gives its core away.
public enum Scheduling {
  /// What the log says about it at start; nil: nothing.
  ///
  /// - Parameters:
  ///   - yields: whether programs are likely to share cores with engines.
  ///   - autogroup: what /proc/sys/kernel/sched_autogroup_enabled holds; nil: this kernel knows no such groups.
  public static func hint(yields: Bool, autogroup: String?) -> String? {
    guard yields, autogroup?.trimmingCharacters(in: .whitespacesAndNewlines) == "1" else { return nil }
    return "engines share cores with programs, and kernel.sched_autogroup_enabled is 1: sched_yield(2) gives a core late to"
      + " programs of other sessions. Give engines a core of their own (engine: cpus), or set it to 0 (sysctl(8))"
  }

  /// As this machine is.
  public static func hint(yields: Bool) -> String? {
    hint(yields: yields, autogroup: try? String(contentsOfFile: "/proc/sys/kernel/sched_autogroup_enabled", encoding: .utf8))
  }
}
