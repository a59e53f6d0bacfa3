import Foundation
import Testing

extension OneAtATime {
  /// Runs `Tests/ConformanceTests/run`, which anybody can run on any shim. It starts its own daemon.
  @Suite(.serialized) struct Conformance {
    private func run(_ script: String, _ options: [String], seconds: Double) throws {
      try withBench(.kernel) { bench in
        let script = repository.appending(path: "Tests/ConformanceTests/\(script)").path
        let result = try bench.start("conformance", [script] + options).wait(seconds: seconds)
        // Every line that does not start with "passed" is a case that failed, and its story.
        print(result.output.split(separator: "\n").last ?? "")
        #expect(result.status == 0, "\(result.output)\(result.errors)")
        #expect(result.output.contains(#/(?m)^[1-9][0-9]* passed, 0 failed/#))
      }
    }

    private var bench: [String] {
      [
        "--preload", product("libmachnet-preload.so"), "--daemon", "\(product("machnetd")) --config {config}", "--quiet",
      ]
    }

    // (All topologies in one run: the kernel is asked once.)
    @Test("every call, option and wait is the kernel's")
    func callByCall() throws {
      let withDaemon = Topology.available.contains(.local)
      try run("run", bench + ["--topology", withDaemon ? "absent,local,mixed,reverse" : "absent"], seconds: 180)
    }

    @Test("the UDP and readiness tests of CPython end as they end on the kernel", .enabled(if: Topology.available.contains(.local)))
    func foreign() throws {
      try run("foreign", bench, seconds: 240)
    }
  }
}
