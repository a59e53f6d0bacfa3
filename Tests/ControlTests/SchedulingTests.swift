import MachnetControl
import Testing

@Suite("Scheduling")
struct SchedulingTests {
  @Test("only engines that share their cores on a kernel that groups sessions are a matter for the log")
  func hint() throws {
    let hint = try #require(Scheduling.hint(yields: true, autogroup: "1\n"))
    #expect(hint.contains("sched_autogroup_enabled") && hint.contains("engine: cpus"))
    #expect(Scheduling.hint(yields: true, autogroup: "0\n") == nil)
    #expect(Scheduling.hint(yields: true, autogroup: nil) == nil)
    #expect(Scheduling.hint(yields: false, autogroup: "1\n") == nil)
  }
}
