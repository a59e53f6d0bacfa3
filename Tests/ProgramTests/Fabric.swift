import Foundation

/// A running `machnet-fabric` with two vNICs, a and b, of two queues each.
final class Fabric {
  /// What the tests read from `machnet-fabric --json`.
  struct Report: Decodable {
    struct VNIC: Decodable {
      let name: String
      let up: Bool
      let sent, delivered, lost, duplicated, reordered: Int
      let deliveredByQueue: [Int]
    }
    let seed: UInt64
    let vnics: [VNIC]
  }

  let program: Program
  private let directory: URL

  init(_ options: [String], in bench: Bench) throws {
    directory = bench.directory
    let vnics = ["a", "b"].flatMap { ["--vnic", "\($0)=\(bench.directory.path)/fabric-\($0)"] }
    let program = try bench.start("fabric", [product("machnet-fabric"), "--json", "--queues", "2"] + vnics + options)
    self.program = program
    try waitUntil("machnet-fabric", seconds: 30) {
      guard program.isRunning else { throw Failure("ended at start\n\(program.story)") }
      return program.errors.contains("ready")
    }
  }

  /// How a daemon takes a vNIC, and the two engines that it needs for it.
  func device(_ name: String) -> String { "net_memif0,role=client,socket=\(directory.path)/fabric-\(name)" }
  static var engines: String {
    let cpus = Set([0, ProcessInfo.processInfo.processorCount - 1]).sorted().map(String.init)
    return "{ polling: adaptive, cpus: [\(cpus.joined(separator: ", "))] }"
  }

  func waitUp(_ name: String, _ isUp: Bool = true) throws {
    try waitUntil("vNIC \(name) \(isUp ? "up" : "down")", seconds: 20) {
      try report().vnics.contains { $0.name == name && $0.up == isUp }
    }
  }

  /// What the fabric says when it is asked.
  func report() throws -> Report {
    let before = program.output.count { $0 == "\n" }
    program.send(SIGUSR1)
    try waitUntil("statistics of the fabric") { program.output.count { $0 == "\n" } > before }
    return try read(program.output)
  }

  func read(_ output: String) throws -> Report {
    let decoder = JSONDecoder()
    decoder.keyDecodingStrategy = .convertFromSnakeCase
    return try decoder.decode(Report.self, from: Data(output.split(separator: "\n").last!.utf8))
  }
}
