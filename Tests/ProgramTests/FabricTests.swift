import Foundation
import Testing

/// What the tests read from `machnet-fabric --json`.
private struct FabricReport: Decodable {
  struct VNIC: Decodable {
    let name: String
    let up: Bool
    let sent, delivered, lost, duplicated, reordered: Int
    let deliveredByQueue: [Int]
  }
  let seed: UInt64
  let vnics: [VNIC]
}

extension OneAtATime {
  @Suite(.serialized) struct Fabric {
    /// A fabric, and daemons of two engines on it.
    private final class Cloud {
      let bench: Bench
      let fabric: Program
      private(set) var daemons: [String: Daemon] = [:]

      init(_ bench: Bench, _ options: [String]) throws {
        self.bench = bench
        let vnics = ["a", "b"].flatMap { ["--vnic", "\($0)=\(bench.directory.path)/fabric-\($0)"] }
        let fabric = try bench.start(
          "fabric", [product("machnet-fabric"), "--json", "--queues", "2"] + vnics + options)
        self.fabric = fabric
        try waitUntil("machnet-fabric", seconds: 30) {
          guard fabric.isRunning else { throw Failure("ended at start\n\(fabric.story)") }
          return fabric.errors.contains("ready")
        }
        for name in ["a", "b"] { try startDaemon(name) }
      }

      func address(_ name: String) -> String { name == "a" ? "10.78.0.1" : "10.78.0.2" }

      func startDaemon(_ name: String) throws {
        let device = "net_memif0,role=client,socket=\(bench.directory.path)/fabric-\(name)"
        let last = ProcessInfo.processInfo.processorCount - 1
        daemons[name] = try Daemon(
          name, flows: ["{ match: { remote: \"10.78.0.0/24\" }, path: machnet, transport: udp }"],
          interface: "{ name: net0, address: \(address(name))/24, device: { vdev: \"\(device)\" }, queues: 2 }",
          engine: "{ polling: adaptive, cpus: [\(Set([0, last]).sorted().map(String.init).joined(separator: ", "))] }",
          in: bench)
        try waitUntil("vNIC \(name)", seconds: 20) { try report().vnics.contains { $0.name == name && $0.up } }
      }

      func kill(_ name: String) throws {
        try daemons[name]!.program.stop(SIGKILL)
        try waitUntil("vNIC \(name) down", seconds: 20) { try report().vnics.contains { $0.name == name && !$0.up } }
      }

      /// What the fabric says when it is asked.
      func report() throws -> FabricReport {
        let before = fabric.output.count { $0 == "\n" }
        fabric.send(SIGUSR1)
        try waitUntil("statistics of the fabric") { fabric.output.count { $0 == "\n" } > before }
        return try read(fabric.output)
      }

      func read(_ output: String) throws -> FabricReport {
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        return try decoder.decode(FabricReport.self, from: Data(output.split(separator: "\n").last!.utf8))
      }

      /// Eight clients at one server: as many flows.
      func talk(_ port: Int, count: Int) throws {
        let echo = testProgram("blocking_echo.py")
        let clients = try (0..<8).map { number in
          try bench.start(
            "client-\(number)",
            daemons["b"]!.run(["python3", echo, "client", address("a"), "\(port)", "\(count)", "64,1400,9000"]))
        }
        for client in clients {
          let result = try client.wait(seconds: 90)
          #expect(result.status == 0 && result.output == "ok \(count)\n", "\(client.story)\n\(fabric.story)")
        }
      }

      func serve(_ port: Int) throws {
        let command = ["python3", testProgram("blocking_echo.py"), "server", address("a"), "\(port)"]
        try bench.start("server", daemons["a"]!.run(command)).waitBound(port)
      }
    }

    @Test("daemons of two engines talk, over both queues, and one that was killed comes back")
    func withoutFaults() throws {
      try withBench(.kernel) { bench in
        let cloud = try Cloud(bench, ["--seed", "1"])
        let port = Bench.freshPort()
        try cloud.serve(port)
        try cloud.talk(port, count: 30)
        let report = try cloud.report()
        #expect(report.seed == 1)
        for vnic in report.vnics {
          #expect(vnic.deliveredByQueue.count == 2 && vnic.deliveredByQueue.reduce(0, +) == vnic.delivered)
          #expect(vnic.lost == 0 && vnic.duplicated == 0 && vnic.delivered > 8 * 30, "\(vnic)")
        }
        // Eight flows at random ports: on one vNIC they are all in one queue once in 128 times, on both hardly ever.
        #expect(report.vnics.contains { $0.deliveredByQueue.allSatisfy { $0 > 0 } }, "\(report)")
        for name in ["a", "b"] {
          let status = try cloud.daemons[name]!.status(in: bench)
          #expect(status.engines.count == 2)
        }
        try cloud.kill("b")
        try cloud.startDaemon("b")
        try cloud.talk(port, count: 3)
        let result = try cloud.fabric.stop(SIGTERM)
        #expect(result.status == 0, "\(cloud.fabric.story)")
        #expect(try cloud.read(result.output).vnics[0].delivered > report.vnics[0].delivered)
      }
    }

    @Test("what arrives under loss, duplication and reordering is right")
    func withFaults() throws {
      try withBench(.kernel) { bench in
        let cloud = try Cloud(
          bench, ["--loss", "0.01", "--duplication", "0.05", "--reordering", "0.1", "--jitter-us", "20"])
        let port = Bench.freshPort()
        try cloud.serve(port)
        try cloud.talk(port, count: 15)
        let report = try cloud.report()
        #expect(report.vnics.reduce(0) { $0 + $1.lost } > 0, "\(report)")
        #expect(report.vnics.reduce(0) { $0 + $1.duplicated } > 0 && report.vnics.reduce(0) { $0 + $1.reordered } > 0)
        #expect(try cloud.fabric.stop().status == 0)
      }
    }

    @Test("mistakes have names and places")
    func mistakes() throws {
      try withBench(.kernel) { bench in
        func check(_ options: [String]) throws -> Program.Result {
          try Program("fabric", [product("machnet-fabric"), "--check"] + options, in: bench.directory).wait(seconds: 20)
        }
        let right = try bench.write(
          """
          seed: 7
          link: { bandwidth: 10G, delay-us: 12.5, queue-limit: 100000 }
          faults: { loss: 0.01, loss-burst: 4, reordering: 0.1, reordering-us: 10-200 }
          partitions: { every-ms: 500-2000, for-ms: 50 }
          vnics:
            - { name: a, socket: /tmp/a, queues: 2 }
            - { name: b, socket: /tmp/b, queues: 2, link: { bandwidth: 100M }, faults: { loss: 0 } }
          """, to: "right.yaml")
        #expect(try check(["--config", right]).status == 0)
        let wrong = try bench.write(
          """
          link: { bandwidth: fast, delay-us: -1 }
          faults: { loss: 2, reordering-us: 200-10 }
          vnics:
            - { name: a, socket: relative, queues: 99 }
            - { name: "a b", socket: "/tmp/x,id=1" }
          """, to: "wrong.yaml")
        let result = try check(["--config", wrong])
        #expect(result.status != 0)
        for place in ["1:20", "1:36", "2:17", "2:35", "4:24", "4:42", "5:13", "5:28"] {
          #expect(result.errors.contains("wrong.yaml:\(place)"), "\(place) in\n\(result.errors)")
        }
        for options in [[], ["--vnic", "a=b"], ["--vnic", "a=/x", "--loss", "1.5"], ["--vnic", "a=/x", "--queues", "0"]] {
          #expect(try check(options).status != 0, "\(options)")
        }
      }
    }
  }
}
