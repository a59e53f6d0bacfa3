import Foundation
import Testing

extension OneAtATime {
  @Suite(.serialized) struct Semantics {
    private func transcript(_ topology: Topology) throws -> String {
      try withBench(topology) { bench in
        let result = try bench.client("/usr/bin/python3", testProgram("semantics.py")).wait(seconds: 60)
        #expect(result.status == 0, "\(topology): \(result.output)\(result.errors)")
        #expect(result.errors == "")
        if topology == .local { try bench.expectOnEngine(atLeast: 1000) }
        return result.output
      }
    }

    @Test("what a program sees of its sockets is what the kernel shows it", arguments: [Topology.absent, .local])
    func agreesWithTheKernel(_ topology: Topology) throws {
      let kernel = try transcript(.kernel).split(separator: "\n")
      let shim = try transcript(topology).split(separator: "\n")
      #expect(kernel.count > 100)
      for (line, (expected, found)) in zip(kernel, shim).enumerated() {
        #expect(found == expected, "line \(line + 1)")
      }
      #expect(kernel.count == shim.count)
    }

    @Test("a wait for room sleeps beside unread input, and hears of room beside another thread's wait for input")
    func room() throws {
      try withBench(.local) { bench in
        let program = try compiledProgram("room", ["-pthread"])
        let result = try bench.client(program, "\(bench.clientDaemon!.program.pid)").wait(seconds: 60)
        #expect(result.output == "no room: 0\nslept beside unread input: yes\nroom that nobody told of: 0\n", "\(result.errors)")
      }
    }
  }
}
