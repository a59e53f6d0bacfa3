import ArgumentParser
import EngineBench
import Foundation
import MachnetSimulation

/// Runs the transport in simulated networks and prints what it reaches.
@main
struct Simulate: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "machnet-simulate",
    abstract: "Runs the machnet transport in simulated networks, in virtual time.",
    subcommands: [SetUp.self, Goodput.self, Incast.self, Swarm.self, Daemons.self, Cost.self])
}

struct Seed: ParsableArguments {
  @Option(name: .long, help: "Replays a run; without it SEED from the environment, or a random number.")
  var seed: UInt64?

  var value: UInt64 {
    seed ?? ProcessInfo.processInfo.environment["SEED"].flatMap(UInt64.init) ?? .random(in: 1...UInt64(UInt32.max))
  }

  /// Runs `count` seeds from one on.
  ///
  /// - Parameters:
  ///   - command, options: that replay one of them.
  ///   - run: what is wrong with a seed's run, line by line; nil: nothing.
  /// - Returns: how many failed.
  static func sweep(_ count: Int, from first: UInt64, replay command: String, _ options: String = "", run: (UInt64) -> [String]?) -> Int {
    print("seeds \(first)..\(first &+ UInt64(count) &- 1)")
    var failed = 0
    for index in 0..<count {
      let seed = first &+ UInt64(index)
      guard let story = run(seed) else { continue }
      failed += 1
      print("FAILED seed \(seed): replay with SEED=\(seed) machnet-simulate \(command) --seeds 1 --verbose\(options)")
      for line in story { print("  \(line)") }
    }
    return failed
  }

  static func conclude(_ count: Int, _ failed: Int) throws {
    print("\(count - failed) passed, \(failed) failed")
    if failed > 0 { throw ExitCode.failure }
  }
}

private func row(_ cells: [String], _ widths: [Int]) {
  print(
    "| "
      + zip(cells, widths).map { String(repeating: " ", count: max(0, $1 - $0.count)) + $0 }.joined(separator: " | ")
      + " |")
}

private func number(_ value: Double, _ digits: Int) -> String { String(format: "%.\(digits)f", value) }

struct SetUp: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "set-up", abstract: "SYN and SYN-ACK packets that a session takes (RSS--).")
  @OptionGroup var seed: Seed
  @Option(name: .long, help: "Sessions to set up.") var count = 10_000

  func run() {
    let seed = seed.value
    print("seed \(seed), \(count) sessions each, 10 Gbit/s, 50 us round trip")
    let widths = [7, 6, 4, 6, 10]
    row(["engines", "median", "p95", "theory", "median us"], widths)
    for engines in [1, 2, 4, 8, 16] {
      let it = TransportExperiments.setUp(engines: engines, count: count, seed: seed)
      row(
        [
          "\(engines)x\(engines)", "\(it.median)", "\(it.percentile95)", engines == 1 ? "2" : number(it.theory, 1),
          number(Double(it.medianTime) / 1000, 0),
        ], widths)
    }
  }
}

struct Goodput: ParsableCommand {
  static let configuration = CommandConfiguration(abstract: "8 MB over a link that loses or reorders packets.")
  @OptionGroup var seed: Seed
  @Option(name: .long, help: "Runs of each; the median is shown.") var runs = 11

  func run() {
    let seed = seed.value
    print("seed \(seed), 8 MiB, 10 Gbit/s, 50 us round trip, medians of \(runs)")
    let widths = [5, 22, 9, 7, 15, 8, 8]
    row(["MTU", "faults", "Gbit/s", "link", "retransmissions", "spurious", "timeouts"], widths)
    var cases: [(String, Faults)] = [0, 0.001, 0.01, 0.05].map { ("loss \(number($0 * 100, 1))%", Faults(loss: $0)) }
    cases.append(("reordering 1%", Faults(reordering: 0.01)))
    for mtu in [9000, 1500] {
      for (name, faults) in cases {
        let all = (0..<runs).map {
          TransportExperiments.transfer(mtu: mtu, faults: faults, seed: seed &+ UInt64($0))
        }.sorted { $0.goodput < $1.goodput }
        let it = all[runs / 2]
        row(
          [
            "\(mtu)", name, number(it.goodput / 1e9, 2), number(it.share * 100, 1) + "%",
            number(Double(it.retransmissions) * 100 / Double(it.packets), 2) + "%",
            number(Double(it.spurious) * 100 / Double(it.packets), 3) + "%", "\(it.timeouts)",
          ], widths)
      }
    }
  }
}

struct Incast: ParsableCommand {
  static let configuration = CommandConfiguration(abstract: "Many senders, one receiver.")
  @OptionGroup var seed: Seed

  func run() {
    let seed = seed.value
    print("seed \(seed), 10 Gbit/s, 50 us round trip, target of the queueing delay 100 us, 200 ms")
    let widths = [5, 7, 13, 10, 8, 7, 5]
    row(["MTU", "senders", "median us", "p99 us", "Jain", "link", "drops"], widths)
    for mtu in [1500, 9000] {
      for senders in [2, 4, 16, 32] {
        let it = TransportExperiments.incast(senders: senders, mtu: mtu, seed: seed)
        row(
          [
            "\(mtu)", "\(senders)", number(Double(it.medianDelay) / 1000, 1),
            number(Double(it.percentile99Delay) / 1000, 1), number(it.fairness, 3), number(it.share * 100, 1) + "%",
            "\(it.drops)",
          ], widths)
      }
    }
  }
}

struct Swarm: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Many seeds, each with faults of its own; every message is watched.")
  @OptionGroup var seed: Seed
  @Option(name: .long, help: "How many seeds, from the first one on.") var seeds = 1000
  @Flag(name: .long, help: "Damage a message in every run: each must be noticed.") var canary = false
  @Flag(name: .long, help: "Print every run.") var verbose = false

  func run() throws {
    var sums = (messages: 0, delivered: 0, excused: 0, packets: UInt64(0), retransmissions: UInt64(0), time: UInt64(0))
    let failed = Seed.sweep(seeds, from: seed.value, replay: "swarm") { seed in
      let it = TransportExperiments.swarm(seed: seed, canary: canary)
      if verbose { print("seed \(it.seed): \(it.delivered)/\(it.messages), \(it.packets) packets; \(it.description)") }
      sums.messages += it.messages
      sums.delivered += it.delivered
      sums.excused += it.excused
      sums.packets += it.packets
      sums.retransmissions += it.retransmissions
      sums.time += it.virtualTime
      let isWrong = canary ? it.faults.isEmpty && it.delivered == it.messages : !it.faults.isEmpty
      return isWrong ? [it.description] + it.faults.map { "\($0)" } + (canary ? ["the canary was not noticed"] : []) : nil
    }
    print(
      "\(sums.messages) messages: \(sums.delivered) delivered, \(sums.excused) reported lost; \(sums.packets) packets, "
        + "\(sums.retransmissions) retransmissions, \(sums.time / 1_000_000_000) virtual seconds")
    try Seed.conclude(seeds, failed)
  }
}

struct Daemons: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Many seeds, each with faults of its own, for whole daemons: real engines, every datagram watched.")
  @OptionGroup var seed: Seed
  @Option(name: .long, help: "How many seeds, from the first one on.") var seeds = 100
  @Option(name: .long, help: "A fault behind the engines' backs: damage, theft, repetition. Every run must notice it.",
    transform: { text in
      guard let canary = DaemonSwarm.Canary(rawValue: text) else { throw ValidationError("'\(text)' is no canary") }
      return canary
    })
  var canary: DaemonSwarm.Canary?
  @Flag(name: .long, help: "Print every run.") var verbose = false

  func run() throws {
    var sums = (sent: 0, delivered: 0, lost: 0, frames: UInt64(0), time: UInt64(0))
    let failed = Seed.sweep(seeds, from: seed.value, replay: "daemons", canary.map { " --canary \($0.rawValue)" } ?? "") { seed in
      let it = DaemonSwarm.run(seed: seed, canary: canary)
      if verbose { print("seed \(it.seed): \(it.delivered)/\(it.sent), \(it.lost) lost, \(it.frames) frames; \(it.description)") }
      if it.faults.isEmpty == (canary != nil) {
        return [it.description] + it.faults.map { "\($0)" } + (it.faults.isEmpty ? ["the canary was not noticed"] : [])
      }
      sums.sent += it.sent
      sums.delivered += it.delivered
      sums.lost += it.lost
      sums.frames += it.frames
      sums.time += it.virtualTime
      return nil
    }
    print(
      "\(sums.sent) datagrams: \(sums.delivered) delivered, \(sums.lost) lost by sessions that died; \(sums.frames) frames, "
        + "\(sums.time / 1_000_000_000) virtual seconds")
    try Seed.conclude(seeds, failed)
  }
}

struct Cost: ParsableCommand {
  static let configuration = CommandConfiguration(
    abstract: "Two engines and messages between them, for Scripts/engine-cost to count instructions in.")
  @Option(name: .long, help: "udp or machnet.", transform: { text in
    guard ["udp", "machnet"].contains(text) else { throw ValidationError("'\(text)' is neither udp nor machnet") }
    return text
  })
  var transport = "machnet"
  @Option(name: .long, help: "Rounds, in which either engine works once.") var rounds = 1000
  @Option(name: .long, help: "Messages before each round.") var burst = 32
  @Option(name: .long, help: "Bytes of a message.") var size = 64

  func run() {
    let it = EngineCost(size: size, machnet: transport == "machnet")
    it.run(rounds: rounds, burst: burst)
    // What is still on its way, and acknowledgements.
    it.run(rounds: 100, burst: 0)
    print("delivered=\(it.delivered)")
  }
}
